"""The two passes of an episode: write the history into the memory, then read from it.

Nothing here depends on the values of arrays or changes in Python but the states, so the backward
pass of a checkpoint can run a layer again. The prompt caches of inference count and flag in Python.
"""

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList

from ..compat import BaseCache
from ..model.cache_parts import part_at, put_part
from ..model.layer_cache import LayerCache, NoKeys
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

    @property
    def mean_gate(self) -> mx.array:
        """Mean write gate of the last call."""
        if self.beta is None:
            raise ValueError("The pass has not run yet.")
        return self.beta

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
        if self.span_ids is None or self.span_counts is None:
            raise ValueError("There are no spans to write.")
        spans = mx.arange(self.span_counts.shape[1])
        member = mx.equal(self.span_ids[:, None], spans[None, :, None]).astype(mx.float32)
        means = (member @ projected) / mx.maximum(self.span_counts, 1)[..., None]
        before = self._state(projected.shape[0], spec)
        written, there = activate(means, spec), mx.greater(self.span_counts, 0)
        self.state = delta_scan(before, *written, mask=there)[1]
        self.beta = _mean_of(written.write, there)

    def _state(self, batch: int, spec: ScanSpec) -> mx.array:
        if self.state is None:
            return mx.zeros((batch, spec.heads, spec.rank, spec.rank))
        return self.state


def _mean_of(gates: mx.array, there: mx.array) -> mx.array:
    gates = gates.mean(axis=(2, 3))
    return mx.where(there, gates, 0).sum() / mx.maximum(there.sum(), 1)


class Carried(NamedTuple):
    """What a gradient can flow through from one layer or pass to the next.

    Args:
        states (list[mx.array | None]): Of the memories.
        betas (list[mx.array | None]): Their mean write gates.
        keys (object): State of the KV cache, if it is one that can tell its keys.
    """

    states: list[mx.array | None]
    betas: list[mx.array | None]
    keys: object


class PassCache(LayerCache):
    """A layer's KV cache and its memory in one pass.

    Args:
        kv (BaseCache): ``None``: the attention works as in a call without a cache.
        memories (dict[int, PassMemory]): By layer, of those that use this cache.
    """

    def __init__(self, kv: BaseCache | None, memories: dict[int, PassMemory]):
        self.caches = (NoKeys() if kv is None else kv,)
        self.memories = memories

    def memory_of(self, layer: int) -> PassMemory:
        return self.memories[layer]

    @property
    def carried(self) -> Carried:
        """What is carried on from here. It can be set to what a fork carries."""
        memories = self.memories.values()
        # Others may look at the keys: layers that share the cache, or the model itself.
        keys = self.caches[0].state if hasattr(self.caches[0], "keys_and_values") else None
        return Carried([m.state for m in memories], [m.beta for m in memories], keys)

    @carried.setter
    def carried(self, new: Carried) -> None:
        for memory, state, beta in zip(self.memories.values(), *new[:2], strict=True):
            memory.state, memory.beta = state, beta
        if new.keys is not None:
            self.caches[0].state = new.keys

    def fork(self, carried: Carried) -> "PassCache":
        """The same pass from another state."""
        memories = {layer: memory.fork(None) for layer, memory in self.memories.items()}
        kv = deepcopy(self.kv) if carried.keys is None else copy(self.kv)
        new = PassCache(kv, memories)
        new.carried = carried
        return new


class Passes:
    """Runs a model over whole sequences, with a memory per patched layer and no context kept.

    Args:
        model (nn.Module): A model with an adapter.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.paths = {
            path: [attention.memory_layer for attention in attentions]
            for path, attentions in attachment(model).paths.items()
        }
        self.layers = sorted(layer for layers in self.paths.values() for layer in layers)
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
        for path, layers in self.paths.items():
            part = part_at(caches, path)
            kv = part.kv if isinstance(part, LayerCache) else None
            put_part(caches, path, PassCache(kv, {layer: memories[layer] for layer in layers}))
        return caches

    def _runs_without_context(self) -> bool:
        # Layers that share a KV cache would each make keys of their own without one.
        if any(len(path) > 1 or len(layers) > 1 for path, layers in self.paths.items()):
            return False
        tokens = mx.zeros((1, 2), mx.int32)
        try:
            memories = {layer: PassMemory(tokens == 0) for layer in self.layers}
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
            for layer in self.layers
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
        return {layer: PassMemory(mask, states.get(layer), writes=writes) for layer in self.layers}


def pass_caches(cache: BaseCache) -> list[PassCache]:
    """The parts of a layer's cache that have memories."""
    if isinstance(cache, PassCache):
        return [cache]
    if isinstance(cache, CacheList):
        return [found for part in cache.caches for found in pass_caches(part)]
    return []


def fork_cache(cache: BaseCache, carried: Iterable[Carried]) -> BaseCache:
    """A copy of a layer's cache whose `pass_caches`, in order, start from what ``carried`` says."""
    remaining = iter(carried)

    def fork(part: BaseCache) -> BaseCache:
        if isinstance(part, PassCache):
            return part.fork(next(remaining))
        if isinstance(part, CacheList):
            return CacheList(*map(fork, part.caches))
        return deepcopy(part)

    return fork(cache)
