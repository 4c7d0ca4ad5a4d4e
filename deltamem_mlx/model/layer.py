"""One layer's memory over one call: the reads of its tokens, and the state they leave."""

from itertools import pairwise
from typing import Protocol

import mlx.core as mx
import numpy as np

from ..ops import Gates, ScanSpec, Step, Tokens, activate, delta_scan
from .cache import MemoryCache
from .ingest import Ingest
from .trail import Trail


class OwnWay(Protocol):
    """A memory with a way of its own to advance, such as a training pass brings."""

    def read_and_write(self, projected: mx.array, spec: ScanSpec) -> mx.array:
        """Reads [B, T, r·H] of projected tokens [B, T, P]."""


Memory = MemoryCache | OwnWay


def read_and_write(
    rows: mx.array, batch_size: int, memory: Memory | None, spec: ScanSpec, step: Step
) -> mx.array:
    """Advance ``memory`` over the tokens of a call and return what they read.

    A token reads the state that the tokens before it left, then writes. Padding does neither,
    tokens of a read-only conversation only read, and tokens of an ingest with spans all read the
    state from before it (arXiv 2605.12357, section 3).

    Args:
        rows (mx.array): float32 [1, B·T, P], the packed projections of the tokens, one
          conversation after the other.
        batch_size (int): Conversations B.
        memory (Memory): The layer's memory, changed in place. ``None``: start from an empty
          memory and keep nothing.
        spec (ScanSpec): How projections become queries, keys, values and gates.
        step (Step): ``step_for(spec)``, for one token a conversation.

    Returns:
        mx.array: float32 reads [1, B·T, r·H].

    Raises:
        ValueError: If the memory holds another number of conversations, or of another adapter.
    """
    if isinstance(memory, MemoryCache) and memory.trail is not None:
        return _in_steps(rows, batch_size, memory, memory.trail, spec, step)
    return _at_once(rows, batch_size, memory, spec, step)


def _in_steps(
    rows: mx.array,
    batch_size: int,
    memory: MemoryCache,
    trail: Trail,
    spec: ScanSpec,
    step: Step,
) -> mx.array:
    """The same in pieces, so that the memory's trail has a state from before each last token."""
    tokens = rows.reshape(batch_size, -1, rows.shape[-1])
    T = tokens.shape[1]
    if T == 1 or memory.real(T) is not None:
        return _at_once(rows, batch_size, memory, spec, step)
    together = T - trail.most
    if memory.ingest is not None:  # its tokens are written as one
        together = memory.ingest.longest
    cuts = sorted({0, *range(min(max(together, 0), T), T + 1)})
    reads = [
        _at_once(tokens[:, a:b].reshape(1, -1, rows.shape[-1]), batch_size, memory, spec, step)
        for a, b in pairwise(cuts)
    ]
    parts = [part.reshape(batch_size, -1, spec.read_width) for part in reads]
    return mx.concatenate(parts, axis=1).reshape(1, -1, spec.read_width)


def _at_once(
    rows: mx.array, batch_size: int, memory: Memory | None, spec: ScanSpec, step: Step
) -> mx.array:
    _, n, width = rows.shape
    if isinstance(memory, MemoryCache):
        if memory.heads != spec.heads or memory.rank != spec.rank:
            raise ValueError(
                f"The memory of layer {memory.layer} has {memory.heads} states of rank "
                f"{memory.rank}, the adapter {spec.heads} of rank {spec.rank}. Use a prompt cache "
                "of this adapter."
            )
        memory.fit_batch(batch_size)
        if n == batch_size and memory.undisturbed:
            if memory.observer is not None:  # who looks on changes nothing
                _observe(memory, activate(rows.reshape(batch_size, 1, width), spec).gates, None)
            reads, state = step(memory.states, rows)
            memory.advance(state, 1, 1)
            return reads
    projected = rows.reshape(batch_size, n // batch_size, width)
    if memory is None:
        state = mx.zeros((batch_size, spec.heads, spec.rank, spec.rank))
        reads = _flat(delta_scan(state, *activate(projected, spec))[0])
    elif not isinstance(memory, MemoryCache):
        reads = memory.read_and_write(projected, spec)
    elif memory.ingest is None:
        reads = _scan(projected, memory, spec)
    else:
        reads = _ingest(projected, memory, spec, memory.ingest)
    return reads.reshape(1, n, spec.read_width)


def _scan(projected: mx.array, memory: MemoryCache, spec: ScanSpec) -> mx.array:
    tokens, state = activate(projected, spec), memory.states
    real = memory.real(projected.shape[1])
    mask = None if real is None else mx.array(real)
    _observe(memory, tokens.gates, mask)
    T = projected.shape[1]
    if all(memory.read_only):
        reads = _read(state, tokens.q, mask)
        memory.advance(state, T)
    else:
        reads, state = delta_scan(state, *_hold_read_only(memory, tokens), mask=mask)
        memory.advance(state, T, _written(memory, real, T))
    return _flat(reads)


def _ingest(projected: mx.array, memory: MemoryCache, spec: ScanSpec, ingest: Ingest) -> mx.array:
    """Reads from before the ingest, sums per span, the writes once a conversation's ids end."""
    B, T, _ = projected.shape
    state, padding = memory.states, memory.real(T)
    before = ingest.copy() if memory.trail is not None else None
    if ingest.aligned:
        longest = max(len(row) for row in ingest.rows)
        ingest.begin(memory.real(max(T, longest)))
    real = np.ones((B, T), bool) if padding is None else padding
    done_before = ingest.finished()
    ids, inside = ingest.take(real)
    if inside.any():
        ingest.add(projected, ids)
    tokens = activate(projected, spec)
    _observe(memory, tokens.gates, mx.array(real))
    reads = _read(state, tokens.q, mx.array(real))

    finished = ingest.finished() & ~done_before & ~np.array(memory.read_only)
    if finished.any() and ingest.spans:
        means, writes = ingest.means(finished)
        state = delta_scan(state, *activate(means, spec), mask=writes)[1]
    after = real & ~inside
    if after.any():
        writing = after & ~np.array(memory.read_only)[:, None]
        held = _hold_read_only(memory, tokens)
        token_reads, state = delta_scan(state, *held, mask=mx.array(after))
        reads = mx.where(mx.array(after)[..., None, None], token_reads, reads)
    else:
        writing = np.zeros_like(after)
    written = ((ids >= 0) & ~np.array(memory.read_only)[:, None]) | writing
    if ingest.done:
        memory.ingest = None
    memory.advance(state, T, written.sum(axis=1).tolist(), before)
    return _flat(reads)


def _read(state: mx.array, q: mx.array, mask: mx.array | None) -> mx.array:
    """Reads [B, T, H, r] of all queries from one state; zero at padding."""
    reads = (q.swapaxes(1, 2) @ state.swapaxes(-1, -2)).swapaxes(1, 2)
    return reads if mask is None else mx.where(mask[..., None, None], reads, 0.0)


def _hold_read_only(memory: MemoryCache, tokens: Tokens) -> Tokens:
    """The tokens with gates under which read-only conversations keep their state."""
    if not any(memory.read_only):
        return tokens
    hold = mx.array(memory.read_only)[:, None, None, None]
    return tokens._replace(
        keep=mx.where(hold, 1.0, tokens.keep),
        erase=mx.where(hold, 0.0, tokens.erase),
        write=mx.where(hold, 0.0, tokens.write),
    )


def _written(memory: MemoryCache, real: np.ndarray | None, n: int) -> list[int]:
    counts = [n] * memory.batch_size if real is None else real.sum(axis=1).tolist()
    return [0 if held else c for c, held in zip(counts, memory.read_only, strict=True)]


def _observe(memory: MemoryCache, gates: Gates, mask: mx.array | None) -> None:
    if memory.observer is not None:
        names = gates._asdict()
        memory.observer(memory.layer, names if mask is None else names | {"mask": mask})


def _flat(reads: mx.array) -> mx.array:
    return reads.flatten(-2)
