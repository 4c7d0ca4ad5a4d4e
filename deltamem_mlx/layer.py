"""One layer's memory over one call: the reads of its tokens, and the state they leave."""

import mlx.core as mx
import numpy as np

from .cache import MemoryCache
from .ops import ScanSpec, activate, delta_scan, delta_step


def read_and_write(projected: mx.array, memory: MemoryCache | None, spec: ScanSpec) -> mx.array:
    """Advance ``memory`` over the tokens of a call and return what they read.

    A token reads the state that the tokens before it left, then writes. Padding does neither,
    tokens of a read-only conversation only read, and tokens of an ingest with spans all read the
    state from before it (arXiv 2605.12357, section 3).

    Args:
        projected (mx.array): float32 [B, T, P], the packed projections of the tokens.
        memory (MemoryCache): The layer's memory, changed in place. ``None``: start from an empty
          memory and keep nothing.
        spec (ScanSpec): How projections become queries, keys, values and gates.

    Returns:
        mx.array: float32 reads [B, T, r·H].
    """
    B, T, _ = projected.shape
    if memory is None:
        state = mx.zeros((B, spec.heads, spec.rank, spec.rank))
        return _flat(delta_scan(state, *activate(projected, spec))[0])
    if hasattr(memory, "read_and_write"):  # a training pass brings its own, of arrays alone
        return memory.read_and_write(projected, spec)
    state = memory.open(B)
    real = memory.real(T)
    if memory.ingest is not None:
        return _ingest(projected, memory, spec, state, real)
    if memory.observer is not None or real is not None or any(memory.read_only) or T > 1:
        return _scan(projected, memory, spec, state, real)
    reads, state = delta_step(state, projected, spec)
    memory.advance(state, 1, 1)
    return reads


def _scan(
    projected: mx.array,
    memory: MemoryCache,
    spec: ScanSpec,
    state: mx.array,
    real: np.ndarray | None,
) -> mx.array:
    q, k, v, *gates = activate(projected, spec)
    mask = None if real is None else mx.array(real)
    _observe(memory, gates, mask)
    T = projected.shape[1]
    if all(memory.read_only):
        reads = _read(state, q, mask)
        memory.advance(state, T)
    else:
        gates = _hold_read_only(memory, gates)
        reads, state = delta_scan(state, q, k, v, *gates, mask)
        memory.advance(state, T, _written(memory, real, T))
    return _flat(reads)


def _ingest(
    projected: mx.array,
    memory: MemoryCache,
    spec: ScanSpec,
    state: mx.array,
    real: np.ndarray | None,
) -> mx.array:
    """Reads from before the ingest, sums per span, the writes once a conversation's ids end."""
    B, T, _ = projected.shape
    ingest = memory.ingest
    if ingest.aligned:
        longest = max(len(row) for row in ingest.rows)
        ingest.begin(memory.real(max(T, longest)))
    real = np.ones((B, T), bool) if real is None else real
    done_before = ingest.finished()
    ids, inside = ingest.take(real)
    if inside.any():
        ingest.add(projected, ids)
    q, k, v, *gates = activate(projected, spec)
    _observe(memory, gates, mx.array(real))
    reads = _read(state, q, mx.array(real))

    finished = ingest.finished() & ~done_before & ~np.array(memory.read_only)
    if finished.any() and ingest.spans:
        means, writes = ingest.means(finished)
        state = delta_scan(state, *activate(means, spec), writes)[1]
    after = real & ~inside
    if after.any():
        writing = after & ~np.array(memory.read_only)[:, None]
        gates = _hold_read_only(memory, gates)
        token_reads, state = delta_scan(state, q, k, v, *gates, mx.array(after))
        reads = mx.where(mx.array(after)[..., None, None], token_reads, reads)
    else:
        writing = np.zeros_like(after)
    written = ((ids >= 0) & ~np.array(memory.read_only)[:, None]) | writing
    if ingest.done:
        memory.ingest = None
    memory.advance(state, T, written.sum(axis=1).tolist())
    return _flat(reads)


def _read(state: mx.array, q: mx.array, mask: mx.array | None) -> mx.array:
    """Reads [B, T, H, r] of all queries from one state; zero at padding."""
    reads = (q.swapaxes(1, 2) @ state.swapaxes(-1, -2)).swapaxes(1, 2)
    return reads if mask is None else mx.where(mask[..., None, None], reads, 0.0)


def _hold_read_only(memory: MemoryCache, gates: list[mx.array]) -> list[mx.array]:
    """Gates under which read-only conversations keep their state."""
    if not any(memory.read_only):
        return gates
    hold = mx.array(memory.read_only)[:, None, None, None]
    held = (1.0, 0.0, 0.0)  # keep, erase, write
    return [mx.where(hold, value, gate) for gate, value in zip(gates, held, strict=True)]


def _written(memory: MemoryCache, real: np.ndarray | None, n: int) -> list[int]:
    counts = [n] * memory.batch_size if real is None else real.sum(axis=1).tolist()
    return [0 if held else c for c, held in zip(counts, memory.read_only, strict=True)]


def _observe(memory: MemoryCache, gates: list[mx.array], mask: mx.array | None) -> None:
    if memory.observer is not None:
        names = dict(zip(("keep", "erase", "write"), gates, strict=True))
        memory.observer(memory.layer, names if mask is None else names | {"mask": mask})


def _flat(reads: mx.array) -> mx.array:
    return reads.flatten(-2)
