"""One layer's memory over one call: the reads of its tokens, and the state they leave."""

from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, Protocol

import mlx.core as mx
import numpy as np

from ..ops import DecodeStep, ScanSpec, Short, activate, delta_scan, is_short
from .cache import MemoryCache
from .ingest import Ingest


class Served(NamedTuple):
    """What serves the calls of a layer on this device.

    Args:
        spec (ScanSpec): How projections become queries, keys, values and gates.
        step (DecodeStep): What ``step_for`` gives, for one token a conversation.
        short (Short): What ``short_for`` gives, for few tokens; None where the scan serves them.
    """

    spec: ScanSpec
    step: DecodeStep
    short: Short | None


class OwnWay(Protocol):
    """A memory with a way of its own to advance, such as a training pass brings."""

    def read_and_write(self, projected: mx.array, spec: ScanSpec) -> mx.array:
        """Reads [B, T, r·H] of projected tokens [B, T, P]."""


Memory = MemoryCache | OwnWay


def read_and_write(
    rows: mx.array, batch_size: int, memory: Memory | None, served: Served
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
        served (Served): Settings, and the forms that serve this device.

    Returns:
        mx.array: reads [1, B·T, r·H], float32 or what ``served`` gives.

    Raises:
        ValueError: If the memory holds another number of conversations, or of another adapter.
    """
    if isinstance(memory, MemoryCache) and memory.trail is not None:
        return _in_steps(rows, batch_size, memory, served)
    return _at_once(rows, batch_size, memory, served)


def count(memory: MemoryCache, batch_size: int, tokens: int) -> None:
    """Count the tokens [B, T] of a call as ``read_and_write`` does; the state stays as it is.

    Raises:
        ValueError: If the memory holds another number of conversations.
    """
    memory.fit_batch(batch_size)
    for a, b in _pieces(memory, tokens):
        state, T = memory.matrix, b - a
        if state is None:
            shape = batch_size, memory.heads, memory.rank, memory.rank
            state = mx.array(np.zeros(shape, np.float32))  # nobody would ever compute it
        if memory.ingest is None:
            memory.advance(state, T, _written(memory, memory.real(T), T))
        else:
            _advance(memory, state, T, _take(memory, memory.ingest, T))


def _pieces(memory: MemoryCache, T: int) -> list[tuple[int, int]]:
    """Where a call is cut, so that the memory's trail has a state from before each last token."""
    if memory.trail is None or T == 1 or memory.real(T) is not None:
        return [(0, T)]
    together = T - memory.trail.most
    if memory.ingest is not None:  # its tokens are written as one
        together = memory.ingest.longest
    return [*pairwise(sorted({0, *range(min(max(together, 0), T), T + 1)}))]


def _in_steps(rows: mx.array, batch_size: int, memory: MemoryCache, served: Served) -> mx.array:
    """The same in pieces."""
    tokens = rows.reshape(batch_size, -1, rows.shape[-1])
    pieces = _pieces(memory, tokens.shape[1])
    if len(pieces) == 1:
        return _at_once(rows, batch_size, memory, served)
    reads = [
        _at_once(tokens[:, a:b].reshape(1, -1, rows.shape[-1]), batch_size, memory, served)
        for a, b in pieces
    ]
    width = served.spec.read_width
    parts = [part.reshape(batch_size, -1, width) for part in reads]
    return mx.concatenate(parts, axis=1).reshape(1, -1, width)


def _at_once(rows: mx.array, batch_size: int, memory: Memory | None, served: Served) -> mx.array:
    spec = served.spec
    _, n, width = rows.shape
    if isinstance(memory, MemoryCache):
        if memory.heads != spec.heads or memory.rank != spec.rank:
            raise ValueError(
                f"The memory of layer {memory.layer} has {memory.heads} states of rank "
                f"{memory.rank}, the adapter {spec.heads} of rank {spec.rank}. Use a prompt cache "
                "of this adapter."
            )
        memory.fit_batch(batch_size)
        if memory.undisturbed and (few := _undisturbed(rows, memory, served)) is not None:
            return few
    projected = rows.reshape(batch_size, n // batch_size, width)
    if memory is None:
        state = mx.zeros((batch_size, spec.heads, spec.rank, spec.rank))
        reads = _flat(delta_scan(state, *activate(projected, spec))[0])
    elif not isinstance(memory, MemoryCache):
        reads = memory.read_and_write(projected, spec)
    elif memory.ingest is None:
        reads = _scan(projected, memory, served)
    else:
        reads = _ingest(projected, memory, served, memory.ingest)
    return reads.reshape(1, n, spec.read_width)


def _undisturbed(rows: mx.array, memory: MemoryCache, served: Served) -> mx.array | None:
    """Reads [1, B·T, r·H] of a call of few tokens without padding; None: there are many.

    This is what chats and servers do all day, so nothing is asked here that is known.
    """
    B, n = memory.batch_size, rows.shape[1]
    T = n // B
    if T > 1 and (served.short is None or not is_short(served.spec, B, T)):
        return None
    if memory.watched:
        _observe(memory, rows.reshape(B, T, -1), served.spec, None)
    before, held = memory.states, any(memory.read_only)
    writes = _all_but(tuple(memory.read_only), T) if held else None
    if T == 1 or served.short is None:
        reads, state = served.step(before, rows, writes)
    else:
        together = rows if B == 1 else rows.reshape(B, T, -1)
        reads, state = served.short(before, together, writes)
        reads = reads if B == 1 else reads.reshape(1, n, -1)
    if not held:
        memory.advance(state, T, T)
    elif all(memory.read_only):
        memory.advance(before, T)
    else:
        memory.advance(state, T, _written(memory, None, T))
    return reads


@lru_cache
def _all_but(read_only: tuple[bool, ...], T: int) -> mx.array:
    """Which tokens write, bool [B, T]: made once for all layers and the steps of a batch."""
    found = mx.array([[not held] * T for held in read_only])
    mx.eval(found)
    return found


def _scan(projected: mx.array, memory: MemoryCache, served: Served) -> mx.array:
    T = projected.shape[1]
    real = memory.real(T)
    _observe(memory, projected, served.spec, real)
    reads, state = _walk(memory.states, projected, memory, served, real)
    memory.advance(state, T, None if all(memory.read_only) else _written(memory, real, T))
    return reads


def _walk(
    state: mx.array,
    projected: mx.array,
    memory: MemoryCache,
    served: Served,
    real: np.ndarray | None,
) -> tuple[mx.array, mx.array]:
    """Reads [B, T, r·H], zero where ``real`` is false, and the state that follows."""
    mask = None if real is None else mx.array(real)
    few = _few(state, projected, _writing(memory, real, projected.shape[1]), served)
    if few is not None:
        reads, new = few
        reads = reads if mask is None else mx.where(mask[..., None], reads, 0.0)
        return reads, state if all(memory.read_only) else new
    tokens = activate(projected, served.spec)
    if all(memory.read_only):
        return _read(state, tokens.q, mask), state
    if any(memory.read_only):
        tokens = tokens.held(~mx.array(memory.read_only)[:, None])
    reads, state = delta_scan(state, *tokens, mask=mask)
    return _flat(reads), state


def _few(
    state: mx.array, projected: mx.array, writing: mx.array | None, served: Served
) -> tuple[mx.array, mx.array] | None:
    """Reads and state of a call that is short enough for the forms of those; None: it is not.

    ``writing`` is false for tokens that only read.
    """
    B, T, _ = projected.shape
    if T == 1:
        reads, new = served.step(state, projected.reshape(1, B, -1), writing)
        return reads.reshape(B, 1, -1), new
    if served.short is None or not is_short(served.spec, B, T):
        return None
    return served.short(state, projected, writing)


def _ingest(projected: mx.array, memory: MemoryCache, served: Served, ingest: Ingest) -> mx.array:
    """Reads from before the ingest, sums per span, the writes once a conversation's ids end."""
    state, T = memory.states, projected.shape[1]
    now = _take(memory, ingest, T)
    if now.inside.any():
        ingest.add(projected, now.ids)
    _observe(memory, projected, served.spec, now.real)
    after = now.real & ~now.inside
    finishes = now.finished.any() and ingest.spans > 0
    if T == 1 and not finishes:  # all read the same state: one step will do
        reads, state = _step(state, projected, memory, served, now.real, after)
        _advance(memory, state, T, now)
        return reads
    reads = _look(state, projected, served, now.real)
    if finishes:
        means, writes = ingest.means(now.finished)
        state = delta_scan(state, *activate(means, served.spec), mask=writes)[1]
    if after.any():
        token_reads, state = _walk(state, projected, memory, served, after)
        reads = mx.where(mx.array(after)[..., None], token_reads, reads)
    _advance(memory, state, T, now)
    return reads


def _step(
    state: mx.array,
    projected: mx.array,
    memory: MemoryCache,
    served: Served,
    real: np.ndarray,
    after: np.ndarray,
) -> tuple[mx.array, mx.array]:
    """Reads [B, 1, r·H], zero where ``real`` is false, and the state after writes of ``after``."""
    writing = mx.array(after & ~np.array(memory.read_only)[:, None])
    reads, new = served.step(state, projected.swapaxes(0, 1), writing)
    reads = reads.swapaxes(0, 1)
    return reads if real.all() else mx.where(mx.array(real)[..., None], reads, 0.0), new


class Taken(NamedTuple):
    """What a call is to an ingest.

    Attributes:
        real (np.ndarray): Bool [B, T], false at padding.
        ids (np.ndarray): [B, T], the span of each token; -1: of none.
        inside (np.ndarray): Bool [B, T], tokens of the ingest; real ones after it stand alone.
        finished (np.ndarray): Bool [B], conversations whose spans are to be written now.
        written (np.ndarray): [B], the tokens that are in those spans.
        before (Ingest): As it was before, where there is a way back.
    """

    real: np.ndarray
    ids: np.ndarray
    inside: np.ndarray
    finished: np.ndarray
    written: np.ndarray
    before: Ingest | None


def _take(memory: MemoryCache, ingest: Ingest, T: int) -> Taken:
    """Let an ingest consume the next ``T`` positions."""
    padding = memory.real(T)
    before = ingest.copy() if memory.trail is not None else None
    if ingest.aligned:
        longest = max(len(row) for row in ingest.rows)
        ingest.begin(memory.real(max(T, longest)))
    real = np.ones((memory.batch_size, T), bool) if padding is None else padding
    done_before = ingest.finished()
    ids, inside = ingest.take(real)
    finished = ingest.finished() & ~done_before & ~np.array(memory.read_only)
    in_spans = np.array([(row >= 0).sum() for row in ingest.rows])
    return Taken(real, ids, inside, finished, in_spans * finished, before)


def _advance(memory: MemoryCache, state: mx.array, T: int, now: Taken) -> None:
    """Keep the state after ``T`` positions of an ingest, and count what was written."""
    alone = now.real & ~now.inside & ~np.array(memory.read_only)[:, None]
    written = alone.sum(axis=1) + now.written
    if memory.ingest is not None and memory.ingest.done:
        memory.ingest = None
    memory.advance(state, T, written.tolist(), now.before)


def _look(state: mx.array, projected: mx.array, served: Served, real: np.ndarray) -> mx.array:
    """Reads [B, T, r·H] of all tokens from one state; zero where ``real`` is false."""
    mask = mx.array(real)
    if (few := _few(state, projected, mx.zeros_like(mask), served)) is not None:
        return mx.where(mask[..., None], few[0], 0.0)
    return _read(state, activate(projected, served.spec).q, mask)


def _read(state: mx.array, q: mx.array, mask: mx.array | None) -> mx.array:
    """Reads [B, T, r·H] of all queries from one state; zero at padding."""
    reads = _flat((q.swapaxes(1, 2) @ state.swapaxes(-1, -2)).swapaxes(1, 2))
    return reads if mask is None else mx.where(mask[..., None], reads, 0.0)


def _writing(memory: MemoryCache, real: np.ndarray | None, T: int) -> mx.array | None:
    """Which tokens write, bool [B, T]; None: all."""
    if not any(memory.read_only):
        return None if real is None else mx.array(real)
    may = ~np.array(memory.read_only)[:, None]
    return mx.array(np.repeat(may, T, axis=1) if real is None else may & real)


def _written(memory: MemoryCache, real: np.ndarray | None, n: int) -> list[int]:
    counts = [n] * memory.batch_size if real is None else real.sum(axis=1).tolist()
    return [0 if held else c for c, held in zip(counts, memory.read_only, strict=True)]


def _observe(
    memory: MemoryCache, projected: mx.array, spec: ScanSpec, real: np.ndarray | None
) -> None:
    if not memory.watched:
        return
    gates = activate(projected, spec).gates
    if memory.observer is not None:
        mask = {} if real is None else {"mask": mx.array(real)}
        memory.observer(memory.layer, gates._asdict() | mask)
    for row, gauge in enumerate(memory.gauges or ()):
        if gauge is not None:
            write = gates.write[row]
            gauge.see(
                memory.layer, write if real is None else write[mx.array(np.flatnonzero(real[row]))]
            )


def _flat(reads: mx.array) -> mx.array:
    return reads.flatten(-2)
