"""The chunk form: exact, parallel and differentiable. README.md beside this file derives it.

Tokens are laid out [C, r, N, L], L = B * H: the C tokens of a chunk are walked one by one, in all
N chunks, conversations and heads at once. Those are the innermost axes, the N * L lanes: every
operation runs over long contiguous vectors. A walked state is [r rows, E, r keys, lanes], where E
counts the states that one chunk is walked from.
"""

import mlx.core as mx

from .seams import split, with_gradient

Lanes = list[mx.array]

# Few steps, unless a walked state would outgrow a CPU core's cache or the chain of chunks shows.
# Of C steps each costs the same, and what a step walks shrinks with C: hence the square.
SIZES = (4, 8, 16, 32)
FLOATS_PER_SQUARE = 12_000
MOST_CHUNKS = 128
LONG_CHAIN = 16  # chunks, from which on pairs of them are worth their products


def chunk_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
    *,
    size: int | None = None,
) -> tuple[mx.array, mx.array]:
    """Return what ``recurrent_scan`` returns, with all chunks of the sequence walked side by side.

    Args:
        state (mx.array): float32 [B, H, r, r], rows value, columns key.
        q, k, v, keep, erase, write (mx.array): float32 [B, T, H, r].
        mask (mx.array, optional): bool [B, T]; a False token reads 0 and writes nothing.
        size (int, optional): Tokens per chunk; chosen by the amount of work if not given.

    Returns:
        tuple[mx.array, mx.array]: float32 reads [B, T, H, r] and state [B, H, r, r].
    """
    B, T, H, r = q.shape
    C = size or _chunk_size(T, B * H, r)
    N = max(-(-T // C), 1)
    tokens = mx.stack([q, k, write * v, erase, keep])
    idle = mx.array([0.0, 0.0, 0.0, 0.0, 1.0])[:, None, None, None, None]
    if mask is not None:
        tokens = mx.where(mask[:, :, None, None], tokens, idle)
    if N * C > T:
        padding = mx.broadcast_to(idle, (5, B, N * C - T, H, r))
        tokens = mx.concatenate([tokens, padding], axis=2)
    tokens = tokens.reshape(5, B, N, C, H, r).transpose(0, 3, 5, 2, 1, 4)
    tokens = mx.contiguous(tokens).reshape(5, C, r, N, B * H)
    reads, rows, *_ = _scan(state.reshape(B * H, r, r), *(x[0] for x in split(tokens, 5)))
    reads = reads.reshape(C, r, N, B, H).transpose(3, 2, 0, 4, 1).reshape(B, N * C, H, r)
    return reads[:, :T], rows.reshape(state.shape)


def _chunk_size(T: int, lanes: int, r: int) -> int:
    floats = T * lanes * r * r * (r + 1)
    fitting = (C for C in SIZES if floats <= C * C * FLOATS_PER_SQUARE and T <= C * MOST_CHUNKS)
    return next(fitting, SIZES[-1])


def _walk(
    state: mx.array, q: mx.array, k: mx.array, w: mx.array, erase: mx.array, keep: mx.array
) -> tuple[mx.array, ...]:
    """Scan laid out tokens.

    Args:
        state (mx.array): [L, r rows, r keys], before the first chunk.
        q, k (mx.array): [C, r keys, N, L].
        w, erase, keep (mx.array): [C, r rows, N, L]; w is write * v.

    Returns:
        tuple[mx.array, ...]: reads [C, r rows, N, L] and state; then, for the gradient, the map
        of a row by each chunk [N, L, r rows, r, r keys] and the states chunks start from
        [N, L, r rows, r keys].
    """
    C, r, N, L = q.shape
    keys, ws, erases, keeps = _columns(k), _rows(w), _rows(erase), _rows(keep)
    # Walked from every unit vector with nothing written, and from zero with the writes.
    x = mx.broadcast_to(mx.eye(r + 1, r)[:, :, None], (r, r + 1, r, N * L))
    writes = mx.array([0.0] * r + [1.0])[:, None, None]
    for t in range(C):
        x = _write(x, keys[t], _along(x, keys[t]), writes * ws[t], erases[t], keeps[t])
    maps, offsets = split(_by_chunk(x, N), [r], axis=3)
    starts, state = _chain(maps, offsets, state[None, :, :, None])
    x, reads = _by_lane(starts), []
    for t, query in enumerate(_columns(q)):
        reads.append(_along(x, query))
        x = _write(x, keys[t], _along(x, keys[t]), ws[t], erases[t], keeps[t])
    return mx.concatenate(reads).reshape(q.shape), state[0, :, :, 0], maps, starts


def _walk_back(
    primals: tuple[mx.array, ...], cotangents: tuple[mx.array, ...], outputs: tuple[mx.array, ...]
) -> tuple[mx.array, ...]:
    """Return the gradients, from the same scan run backwards.

    The gradient of the state obeys the state's recurrence with time reversed and the chunks' maps
    transposed, its writes being the gradients of the reads, along q. States and their gradients
    of all tokens at once then give the gradients of the inputs.
    """
    _, q, k, w, erase, keep = primals
    d_reads, d_state, *_ = cotangents
    *_, maps, starts = outputs
    C, r, N, L = q.shape
    queries, keys, asked = _columns(q), _columns(k), _rows(d_reads)
    ws, erases, keeps = _rows(w), _rows(erase), _rows(keep)

    def back(g: mx.array, t: int, error: mx.array) -> mx.array:
        return _write(g, keys[t], error, 0.0, erases[t], keeps[t]) + asked[t] * queries[t]

    g = mx.zeros((r, 1, r, N * L))
    for t in reversed(range(C)):
        g = back(g, t, _along(g, keys[t]))
    maps, offsets = maps[::-1].swapaxes(-1, -2), _by_chunk(g, N)[::-1]
    ends, d_state = _chain(maps, offsets, d_state[None, :, :, None])

    x, walked, predictions = _by_lane(starts), [], []
    for t in range(C):
        walked.append(x)
        predictions.append(_along(x, keys[t]))
        x = _write(x, keys[t], predictions[t], ws[t], erases[t], keeps[t])
    g = _by_lane(ends[::-1])
    walked_back: Lanes = []
    errors: Lanes = []
    for t in reversed(range(C)):
        walked_back.insert(0, g)
        errors.insert(0, _along(g, keys[t]))
        g = back(g, t, errors[0])

    states, grads = mx.stack(walked)[:, :, 0], mx.stack(walked_back)[:, :, 0]
    each = (C, r, 1, N * L)
    predicted, d_w = mx.concatenate(predictions).reshape(each), mx.concatenate(errors).reshape(each)
    w, erase, d_read = w.reshape(each), erase.reshape(each), d_reads.reshape(each)
    d_q = (d_read * states).sum(1)
    d_k = ((w - erase * predicted) * grads - (erase * d_w) * states).sum(1)
    d_keep = (grads * states).sum(2)
    d_tokens = (d_q, d_k, d_w, -predicted * d_w, d_keep)
    return d_state[0, :, :, 0], *(x.reshape(q.shape) for x in d_tokens)


_scan = with_gradient(_walk, _walk_back)


def _along(x: mx.array, key: mx.array) -> mx.array:
    """What a key or query finds in a walked state: [r rows, E, 1, lanes]."""
    return (x * key).sum(2, keepdims=True)


def _write(
    x: mx.array,
    key: mx.array,
    predicted: mx.array,
    w: mx.array | float,
    erase: mx.array,
    keep: mx.array,
) -> mx.array:
    return keep * x + (w - erase * predicted) * key


def _columns(x: mx.array) -> Lanes:
    """One [1, 1, r keys, lanes] a token."""
    return split(x.reshape(x.shape[0], 1, x.shape[1], -1), x.shape[0])


def _rows(x: mx.array) -> Lanes:
    """One [r rows, 1, 1, lanes] a token."""
    return split(x.reshape(x.shape[0] * x.shape[1], 1, 1, -1), x.shape[0])


def _by_chunk(x: mx.array, N: int) -> mx.array:
    """[r rows, E, r keys, N * L] -> [N, L, r rows, E, r keys]"""
    return mx.contiguous(x.reshape(-1, x.shape[-1]).T).reshape(N, -1, *x.shape[:3])


def _by_lane(x: mx.array) -> mx.array:
    """[N, L, r rows, r keys] -> [r rows, 1, r keys, N * L]"""
    r = x.shape[-1]
    return mx.contiguous(x.reshape(-1, r * r).T).reshape(r, 1, r, -1)


def _chain(maps: mx.array, offsets: mx.array, row: mx.array) -> tuple[mx.array, mx.array]:
    """Apply the chunks' maps to the rows, one after the other.

    Args:
        maps (mx.array): [N, L, r rows, r, r keys].
        offsets (mx.array): [N, L, r rows, 1, r keys].
        row (mx.array): [1, L, r rows, 1, r keys].

    Returns:
        tuple[mx.array, mx.array]: The rows before each chunk, [N, L, r rows, 1, r keys], and
        after the last, like ``row``.
    """
    N, starts = maps.shape[0], []
    if N > LONG_CHAIN and maps.shape[1] == 1:
        return _chain_of_pairs(maps, offsets, row)
    for linear, offset in zip(split(maps, N), split(offsets, N), strict=True):
        starts.append(row)
        row = mx.addmm(offset, row, linear)
    return mx.concatenate(starts), row


def _chain_of_pairs(maps: mx.array, offsets: mx.array, row: mx.array) -> tuple[mx.array, mx.array]:
    """The same, at half the length: the maps of neighbours are made one."""
    even = maps.shape[0] // 2 * 2
    first, second = maps[:even:2], maps[1:even:2]
    offset, next_offset = offsets[:even:2], offsets[1:even:2]
    starts, row = _chain(first @ second, mx.addmm(next_offset, offset, second), row)
    between = mx.addmm(offset, starts, first)
    starts = mx.stack([starts, between], axis=1).flatten(0, 1)
    if even == maps.shape[0]:
        return starts, row
    return mx.concatenate([starts, row]), mx.addmm(offsets[-1:], row, maps[-1:])
