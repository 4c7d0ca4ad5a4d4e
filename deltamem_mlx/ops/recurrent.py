"""The recurrent form: one token after another, exactly as the definition reads.

The reference that the other forms are tested against, and the fastest form for a few tokens.
"""

import mlx.core as mx


def recurrent_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> tuple[mx.array, mx.array]:
    """Return what the tokens read, and the state they leave (arXiv 2605.12357).

    Each token reads first, ``S q``, then writes ``S <- keep S - erase (S k) k^T + write v k^T``
    with the gates scaling rows of S.

    Args:
        state (mx.array): float32 [B, H, r, r], rows value, columns key.
        q, k, v, keep, erase, write (mx.array): float32 [B, T, H, r].
        mask (mx.array, optional): bool [B, T]; a False token reads 0 and writes nothing.

    Returns:
        tuple[mx.array, mx.array]: float32 reads [B, T, H, r] and state [B, H, r, r].
    """
    reads = []
    for t in range(q.shape[1]):
        query, key = q[:, t, :, None], k[:, t, :, None]
        read = (state * query).sum(-1)
        change = write[:, t] * v[:, t] - erase[:, t] * (state * key).sum(-1)
        new = keep[:, t, ..., None] * state + change[..., None] * key
        if mask is not None:
            on = mask[:, t, None, None]
            read, new = mx.where(on, read, 0), mx.where(on[..., None], new, state)
        reads.append(read)
        state = new
    return mx.stack(reads, axis=1) if reads else mx.zeros_like(v), state
