"""What a user does to the memory in a prompt cache: look, set, forget, hold, name spans."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    CacheList,
)

from ..model.arguments import expect
from ..model.cache import MemoryCache, Observer
from ..model.ingest import IdRows, Ingest, span_ids
from ..model.layer_cache import DeltaMemCache
from ..model.spread import Spread
from ..model.trail import Trail

PromptCache = list[Any]  # mlx-lm's: a cache of any kind for each layer


def memories(cache: PromptCache) -> dict[int, MemoryCache]:
    """Layer index → the memory in a prompt cache.

    Of a pipeline's process whose layers have none it is a stand-in, for another one's first.

    Raises:
        ValueError: If there is none.
    """
    expect("dm.memory_state(cache), dm.forget_context(cache) and the like", cache=cache)
    found = {m.layer: m for m in sorted(_memories(cache), key=lambda m: m.layer)}
    if not found:
        raise ValueError(
            "This prompt cache holds no memory. Make it with make_prompt_cache(model) after the "
            "adapter is loaded."
        )
    return found


def _memories(caches: Iterable[object]) -> Iterator[MemoryCache]:
    for cache in caches:
        if isinstance(cache, DeltaMemCache):
            yield from cache.memories
        elif isinstance(cache, CacheList):
            yield from _memories(cache.caches)


def spread_in(cache: PromptCache) -> Spread:
    """Which processes have the memories of a prompt cache: this one alone, as a rule.

    Raises:
        ValueError: If the prompt cache holds no memory.
    """
    mark = next(iter(memories(cache).values())).mark
    return Spread() if isinstance(mark, str) else mark.spread


def memory_state(cache: PromptCache) -> dict[int, mx.array]:
    """The memory in a prompt cache: layer index → float32 states [B, H, r, r].

    Of a model in a pipeline all processes call it, and all get the states of all layers.

    Raises:
        ValueError: If the prompt cache holds no memory.
    """
    here, spread = memories(cache), spread_in(cache)
    if spread.pipelined:
        mx.eval([c.state for c in cache])  # what another process waits for hangs on the keys
    return spread.by_layer({i: memory.states for i, memory in here.items()})


def set_memory_state(cache: PromptCache, state: Mapping[int, mx.array]) -> None:
    """Replace the memory in a prompt cache.

    Args:
        cache (list): A prompt cache of a model with an adapter.
        state (Mapping[int, mx.array]): Layer index → states [B, H, r, r], of MLX or NumPy, for
          every layer that has a memory, in whichever process of a pipeline.

    Raises:
        ValueError: If layers or shapes do not fit, or states are not finite; all of them are
          listed.
    """
    state = {i: mx.array(s) for i, s in state.items()}
    found, elsewhere = memories(cache), set(spread_in(cache).all_memories)
    known = found.keys() | elsewhere
    problems = [f"layer {i}: given, but it has no memory" for i in state if i not in known]
    problems += [f"layer {i}: missing" for i in sorted(known) if i not in state]
    batches = {s.shape[0] for s in state.values() if s.ndim == 4}
    one = next(iter(found.values()))  # those of other processes are alike
    for i, memory in ((i, found.get(i, one)) for i in sorted(known)):
        free = memory.matrix is None and memory.batch_size == 1 and len(batches) == 1
        rows = next(iter(batches)) if free else memory.batch_size
        expected = [rows, memory.heads, memory.rank, memory.rank]
        if i in state and list(state[i].shape) != expected:
            problems.append(f"layer {i}: shape {list(state[i].shape)}, expected {expected}")
    bad = [i for i, s in state.items() if not mx.isfinite(s).all()]
    problems += [f"layer {i}: NaN or infinite values" for i in bad]
    if problems:
        raise ValueError("The state does not fit this prompt cache:\n  " + "\n  ".join(problems))
    for i, memory in found.items():
        memory.fit_batch(state[i].shape[0])
        memory.matrix, memory.ingest = state[i].astype(mx.float32), None
        memory.forget_way_back()


def reset_memory(cache: PromptCache) -> None:
    """Zero the memory of a prompt cache and keep its KV cache.

    Raises:
        ValueError: If the prompt cache holds no memory.
    """
    for memory in memories(cache).values():
        memory.clear()


def forget_context(cache: PromptCache) -> None:
    """Drop the KV cache of a prompt cache and keep the memory; the next call is at position 0.

    Raises:
        TypeError: If it is no list.
        ValueError: If the prompt cache holds no memory, or a kind of cache that is not known.
    """
    if isinstance(cache, tuple):
        raise TypeError("cache is a tuple, expected a list, which is changed: list(cache).")
    memories(cache)
    cache[:] = [_without_context(c) for c in cache]


def _without_context(cache: object) -> object:
    if isinstance(cache, DeltaMemCache):
        for memory in cache.memories:
            memory.finalize()
            memory.forget_way_back()
        cache.caches = (_without_context(cache.caches[0]), *cache.memories)
        return cache
    if isinstance(cache, CacheList):
        return CacheList(*map(_without_context, cache.caches))
    return _empty_like(cache)


def _empty_like(cache: object) -> object:
    match cache:
        case BatchKVCache():
            return BatchKVCache([0] * cache.left_padding.size)
        case BatchRotatingKVCache():
            return BatchRotatingKVCache(cache.max_size, [0] * cache.left_padding.size)
        case ArraysCache():
            return ArraysCache(len(cache.cache), [0] * cache.batch_size)
    settings = inspect.signature(type(cache)).parameters
    if not all(hasattr(cache, name) for name in settings):
        raise ValueError(f"Cannot empty a cache of type {type(cache).__name__}.")
    return type(cache)(**{name: getattr(cache, name) for name in settings})


@contextmanager
def read_only(cache: PromptCache) -> Iterator[None]:
    """Within this context the memory of ``cache`` is read but not written.

    What is copied, merged or extracted within it stays so. Rows that are left after a ``filter``
    are all read-only afterwards if one of those before it had been.

    Raises:
        ValueError: If the prompt cache holds no memory.
    """
    held = [(memory, memory.read_only) for memory in memories(cache).values()]
    for memory, flags in held:
        memory.read_only = [True] * len(flags)
    try:
        yield
    finally:
        for memory, flags in held:
            rows = memory.batch_size  # others if it was filtered, or was fresh and met a batch
            memory.read_only = flags if rows == len(flags) else [any(flags)] * rows


@contextmanager
def write_spans(
    cache: PromptCache, message_ids: IdRows, sentence_ids: IdRows | None = None
) -> Iterator[None]:
    """An ingest with sequence-state writes: one write per message or sentence.

    The ids name the next T tokens, which may be fed in any number of calls. All of them read the
    state from before the ingest; when the last has been fed, the mean of each span is written, in
    ascending order of id. Tokens fed after that are one-token writes. Without any id that counts
    (none is 0 or more on a token that is not padding), and for adapters with token writes, every
    token is written by itself (arXiv 2605.12357, section 3.3).

    Args:
        cache (list): A prompt cache of a model with an adapter.
        message_ids: Integers [B, T] as array or list of lists; -1 for tokens of no message.
        sentence_ids: The same for sentences, which ``sentence_mean`` adapters need.

    Raises:
        ValueError: If the ids have a wrong shape, or the context ends before all T tokens were
          fed.
    """
    found = memories(cache)
    for memory in found.values():
        ids = span_ids(message_ids, sentence_ids, memory.granularity)
        if ids is not None:
            memory.fit_batch(len(ids))
            memory.ingest = Ingest.from_ids(ids)
    try:
        yield
    except BaseException:
        for memory in found.values():
            memory.ingest = None
        raise
    waiting = [m.ingest for m in memories(cache).values() if m.ingest is not None]
    if waiting:
        fed, total = waiting[0].fed, [len(row) for row in waiting[0].rows]
        for memory in memories(cache).values():
            memory.ingest = None
        raise ValueError(
            f"write_spans was given ids for {total} tokens, but {fed} were fed before it ended; "
            "nothing was written."
        )


class rewindable:  # a function that is a context manager as well
    """Let the last tokens of a prompt cache be taken back, exactly.

    From this call on the memory keeps its states from before each of the last ``tokens`` tokens, so
    that ``mlx_lm.models.cache.trim_prompt_cache`` and mlx-lm's speculative decoding work. Copies,
    saved files, and what is merged into batches or extracted from them, are not trimmable. What an
    ingest of ``write_spans`` has written can only be taken back as a whole.

    As a context manager it ends that at the end of the block; called alone it lasts.

    Args:
        cache (list): A prompt cache of a model with an adapter.
        tokens (int): How many tokens can be taken back. Taking back more raises ValueError.

    Raises:
        ValueError: If the prompt cache holds no memory, or ``tokens`` is less than 1.
    """

    def __init__(self, cache: PromptCache, tokens: int):
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(
                f"tokens is {tokens!r}; expected how many can be taken back, 1 or more."
            )
        self._cache = cache
        self._before = {i: memory.trail for i, memory in memories(cache).items()}
        for memory in memories(cache).values():
            memory.trail = Trail(tokens)

    def __enter__(self) -> PromptCache:
        return self._cache

    def __exit__(self, *_: object) -> None:
        for i, memory in memories(self._cache).items():
            memory.trail = self._before[i]
            memory.forget_way_back()  # an outer one has not seen these tokens


@contextmanager
def observe(cache: PromptCache, observer: Observer) -> Iterator[None]:
    """Within this context ``observer(layer, gates)`` is called at every forward of a layer.

    ``gates`` holds the float32 arrays ``keep``, ``erase`` and ``write``, each [B, T, H, r], and
    ``mask``, bool [B, T], where some tokens are padding. Of nested ones the innermost is called;
    copies of the cache are not watched.
    """
    before = [(memory, memory.observer) for memory in memories(cache).values()]
    for memory, _ in before:
        memory.observer = observer
    try:
        yield
    finally:
        for memory, outer in before:
            memory.observer = outer
