"""The context of one conversation: a prompt cache, the tokens it was fed, and the way back."""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import CacheList

from ..memory.actions import (
    PromptCache,
    forget_context,
    memories,
    read_only,
    spread_in,
    write_spans,
)
from ..model.layer_cache import DeltaMemCache
from ..text.spans import Spans


class Mark(NamedTuple):
    """A point to go back to.

    Attributes:
        context (object): Which context it lies in; forgetting begins another.
        length (int): Tokens in the context.
        memory (dict[int, tuple]): Layer index → its state and count of tokens written.
    """

    context: object
    length: int
    memory: dict[int, tuple[mx.array | None, list[int]]]


class Context:
    """What a prompt cache has been fed, for one conversation.

    Args:
        model (nn.Module): A model with an adapter.
        cache (list): A prompt cache of it.
        granularity (str): ``memory_write_granularity`` of the adapter.

    Attributes:
        tokens (list[int]): The tokens in the KV cache, in order.
    """

    def __init__(self, model: nn.Module, cache: PromptCache, granularity: str):
        self.model, self.cache, self.granularity = model, cache, granularity
        self.tokens: list[int] = []
        self._which = object()

    def spans(self, spans: Spans) -> AbstractContextManager[None]:
        """Write the coming tokens as ``spans`` says, unless the adapter writes token by token."""
        if self.granularity == "token" or not spans.token_ids:
            return nullcontext()
        sentence_ids = None if spans.sentence_ids is None else [spans.sentence_ids]
        return write_spans(self.cache, [spans.message_ids], sentence_ids)

    def feed(self, spans: Spans, *, step_size: int, write: bool = True) -> None:
        """Run tokens through the model, at most ``step_size`` a call."""
        for _ in self.feeding(spans, step_size=step_size, write=write):
            pass

    def feeding(self, spans: Spans, *, step_size: int, write: bool = True) -> Iterator[int]:
        """The same step by step: yields how many tokens each fed."""
        tokens = mx.array(spans.token_ids, dtype=mx.uint32)
        with self.spans(spans) if write else read_only(self.cache):
            for start in range(0, len(spans.token_ids), step_size):
                step = tokens[None, start : start + step_size]
                with mx.stream(generation_stream):
                    self.model(step, cache=self.cache)
                    self.settle()
                    mx.clear_cache()
                yield step.size
        self.tokens += spans.token_ids

    def settle(self) -> None:
        """Compute what is pending, so that another thread may go on with the cache."""
        mx.eval([c.state for c in self.cache])

    def forget(self) -> None:
        """Drop the KV cache and keep the memory."""
        forget_context(self.cache)
        self.tokens = []
        self._which = object()

    def mark(self, length: int | None = None, *, memory: bool = True) -> Mark:
        """The present point; ``length`` where ``tokens`` does not list yet what was fed.

        Without its ``memory``, that has to be put in before one can go back.
        """
        held = memories(self.cache) if memory else {}
        states = {i: (m.matrix, m.written) for i, m in held.items()}
        return Mark(self._which, len(self.tokens) if length is None else length, states)

    def held(self) -> int:
        """How many tokens the KV cache says it was fed."""
        return min(int(kv.offset) for kv in kv_caches(self.cache) if hasattr(kv, "offset"))

    def can_draft(self, room: int) -> bool:
        """Whether each of the next ``room`` tokens can be taken back from the KV cache."""
        reach = spread_in(self.cache).reach
        return all(
            kv.is_trimmable() and kv.offset + room < min(reach, getattr(kv, "max_size", math.inf))
            for kv in kv_caches(self.cache)
        )

    def take_back(self, n: int) -> None:
        """Drop the last ``n`` tokens, memory and all; within ``rewindable`` only."""
        for cache in self.cache:
            cache.trim(n)

    def can_trim(self) -> bool:
        """Whether the KV cache can drop its last tokens: a full sliding window cannot."""
        return can_cut(self.cache)

    def back_to(self, mark: Mark) -> None:
        """Restore the memory of ``mark``, and the KV cache; that is dropped if it cannot be."""
        for i, memory in memories(self.cache).items():
            memory.matrix, memory.written = mark.memory[i]
            memory.ingest = None
            memory.forget_way_back()
        if mark.context is self._which and self._trim_to(mark.length):
            del self.tokens[mark.length :]
        else:
            self.forget()

    def _trim_to(self, length: int) -> bool:
        caches = list(kv_caches(self.cache))
        if not caches:
            return length == 0
        if not all(hasattr(kv, "offset") for kv in caches) or not spread_in(self.cache).reach:
            return False
        # A call that failed halfway has reached some layers only: each is cut by its own excess.
        excess = [kv.offset - length for kv in caches]
        if min(excess) < 0 or (any(excess) and not self.can_trim()):
            return False
        for kv, n in zip(caches, excess, strict=True):
            if n:
                kv.trim(n)
        return True

    @property
    def which(self) -> object:
        """What marks of this context hold, until it is forgotten."""
        return self._which

    def take(self, cache: PromptCache, tokens: list[int], which: object) -> None:
        """Go on with a prompt cache that has been fed ``tokens``."""
        self.cache, self.tokens, self._which = cache, tokens, which

    def fork(self) -> "Context":
        """An independent copy; arrays are shared until one side changes them."""
        new = copy.copy(self)
        new.cache, new.tokens = copy.deepcopy(self.cache), list(self.tokens)
        return new


def can_cut(cache: PromptCache) -> bool:
    """Whether a prompt cache's keys and values can lose their last tokens, in all processes."""
    parts = list(kv_caches(cache))
    held = max((int(kv.offset) for kv in parts if hasattr(kv, "offset")), default=0)
    return all(kv.is_trimmable() for kv in parts) and held < spread_in(cache).reach


def kv_caches(caches: Sequence[Any]) -> Iterator[Any]:
    """All parts of a prompt cache that are not memories, of whatever kind mlx-lm made them."""
    for cache in caches:
        if isinstance(cache, DeltaMemCache):
            yield from [] if cache.kv is None else kv_caches([cache.kv])
        elif isinstance(cache, CacheList):
            yield from kv_caches(cache.caches)
        else:
            yield cache
