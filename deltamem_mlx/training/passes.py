"""The two passes of an episode: write the history into the memory, then read from it.

Nothing here depends on the values of arrays or changes in Python but the states, so the backward
pass of a checkpoint can run a layer again. The prompt caches of inference count and flag in Python.
"""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList

from ..model.cache import DeltaMemCache
from ..model.patch import attachment
from ..ops import ScanSpec, activate, delta_scan


@dataclass
class PassMemory:
    """The memory of one layer in one pass over B conversations.

    Args:
        mask (mx.array): bool [B, T], false at padding.
        state (mx.array): float32 [B, H, r, r] to begin with; ``None``: nothing was written.
        writes (bool): Whether tokens are written, or only read.
        span_ids (mx.array): int32 [B, T], the span of each token, counted from 0, -1 for none.
          ``None``: every token is written by itself.
        span_counts (mx.array): float32 [B, S], tokens of each span; 0 for a span that is not there.
        beta (mx.array): Set by the pass: mean write gate of what was written, or of the tokens if
          nothing was, padding left out.
    """

    mask: mx.array
    state: mx.array | None = None
    writes: bool = True
    span_ids: mx.array | None = None
    span_counts: mx.array | None = None
    beta: mx.array | None = None

    def fork(self, state: mx.array | None) -> "PassMemory":
        """The same pass from another state."""
        return replace(self, state=state, beta=None)

    def read_and_write(self, projected: mx.array, spec: ScanSpec) -> mx.array:
        """Reads [B, T, r·H] of the tokens of a call, as `layer.read_and_write`."""
        tokens = activate(projected, spec)
        q = tokens.q
        self.beta = _mean_of(tokens.write, self.mask)
        if self.writes and self.span_ids is None:
            before = self._state(projected.shape[0], spec)
            reads, self.state = delta_scan(before, *tokens, mask=self.mask)
        elif self.state is None:
            reads = mx.zeros(q.shape)
        else:
            reads = (q.swapaxes(1, 2) @ self.state.swapaxes(-1, -2)).swapaxes(1, 2)
        if self.writes and self.span_ids is not None:
            self._write_spans(projected, spec)
        return reads.flatten(-2)

    def _write_spans(self, projected: mx.array, spec: ScanSpec) -> None:
        """One write per span: projections are linear, so their mean is that of the mean token."""
        spans = mx.arange(self.span_counts.shape[1])
        member = (self.span_ids[:, None] == spans[None, :, None]).astype(mx.float32)
        means = (member @ projected) / mx.maximum(self.span_counts, 1)[..., None]
        before = self._state(projected.shape[0], spec)
        written, there = activate(means, spec), self.span_counts > 0
        self.state = delta_scan(before, *written, mask=there)[1]
        self.beta = _mean_of(written.write, there)

    def _state(self, batch: int, spec: ScanSpec) -> mx.array:
        if self.state is None:
            return mx.zeros((batch, spec.heads, spec.rank, spec.rank))
        return self.state


def _mean_of(gates: mx.array, there: mx.array) -> mx.array:
    gates = gates.mean(axis=(2, 3))
    return mx.where(there, gates, 0).sum() / mx.maximum(there.sum(), 1)


class Passes:
    """Runs a model over whole sequences, with a memory per patched layer and no context kept.

    Args:
        model (nn.Module): A model with an adapter.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.paths = {a.memory_layer: path for path, a in attachment(model).paths.items()}
        self._keeps_context = False
        self._keeps_context = not self._runs_without_context()

    def caches(self, memories: dict[int, PassMemory]) -> list:
        """A prompt cache of these memories.

        Where the model allows it there is no KV cache beside them: attentions then work as in a
        call without a cache.
        """
        caches = self.model.make_cache()
        if not self._keeps_context:
            caches = [None] * len(caches)
        for layer, path in self.paths.items():
            kv = at(caches, path).kv if self._keeps_context else None
            put(caches, path, DeltaMemCache(kv, memories[layer]))
        return caches

    def _runs_without_context(self) -> bool:
        if any(len(path) > 1 for path in self.paths.values()):
            return False
        tokens = mx.zeros((1, 2), mx.int32)
        try:
            memories = {layer: PassMemory(tokens == 0) for layer in self.paths}
            self.model(tokens, cache=self.caches(memories))  # never evaluated
        except Exception:  # a model that asks its cache for more than None can answer
            return False
        return all(memory.beta is not None for memory in memories.values())

    def write(
        self,
        tokens: mx.array,
        mask: mx.array,
        span_ids: mx.array | None = None,
        span_counts: mx.array | None = None,
    ) -> dict[int, PassMemory]:
        """The memories, by layer, after tokens [B, W] were written from an empty state."""
        memories = {
            layer: PassMemory(mask, span_ids=span_ids, span_counts=span_counts)
            for layer in self.paths
        }
        self.model(tokens, cache=self.caches(memories))
        return memories

    def reading(
        self, mask: mx.array, written: dict[int, PassMemory] | None, *, writes: bool = False
    ) -> dict[int, PassMemory]:
        """Memories for the read pass; without a write pass before, they are empty.

        With ``writes`` its tokens are written one by one, whatever the adapter's granularity.
        """
        states = {layer: memory.state for layer, memory in (written or {}).items()}
        return {layer: PassMemory(mask, states.get(layer), writes=writes) for layer in self.paths}


def at(caches: Sequence, path: Sequence[int]) -> object:
    """The cache at a path into nested cache lists."""
    for i in path:
        caches = (caches.caches if isinstance(caches, CacheList) else caches)[i]
    return caches


def put(caches: list, path: Sequence[int], new: DeltaMemCache) -> None:
    """Replace the cache at a path."""
    *outer, last = path
    holder = at(caches, outer)
    if isinstance(holder, CacheList):
        inner = list(holder.caches)
        inner[last] = new
        holder.caches = tuple(inner)
    else:
        holder[last] = new


def fork_cache(cache: object, states: Sequence[mx.array | None]) -> object:
    """A copy of a layer's cache whose memories, in order, start from ``states``."""
    remaining = list(states)

    def fork(part: object) -> object:
        if isinstance(part, DeltaMemCache):
            return DeltaMemCache(deepcopy(part.kv), part.memory.fork(remaining.pop(0)))
        if isinstance(part, CacheList):
            return CacheList(*map(fork, part.caches))
        return deepcopy(part)

    return fork(cache)


def memories_in(cache: object) -> list[PassMemory]:
    """The memories in a layer's cache, in the order of `fork_cache`."""
    if isinstance(cache, DeltaMemCache):
        return [cache.memory]
    if isinstance(cache, CacheList):
        return [memory for part in cache.caches for memory in memories_in(part)]
    return []
