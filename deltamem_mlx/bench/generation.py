"""Prefill and decode of a plain model and of its patched twins, run by run."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..memory.actions import memories, write_spans
from ..model.ingest import Ingest
from ..model.layer_cache import DeltaMemCache
from ..model.patch import config_of, is_attached
from .models import Pair
from .primitives import cached_arrays
from .timing import Effort, Samples, alternate

PREFILL_STEP = 2048  # tokens a call, as in mlx-lm
MESSAGE = 64  # tokens a message, where writes go by message
UNTIMED = 2  # decode steps before the clock starts: the first one copies the cache

PLAIN = "plain"


@dataclass(frozen=True)
class Row:
    """One figure, of the plain and of a patched model.

    Args:
        strategy (str): TSW, MSW or SSW.
        batch_size (int): Conversations B.
        length (int): Tokens of the prompt, or in the cache when decoding begins.
        tokens (int): Tokens that a run reads or writes, over all conversations.
        plain, patched (Samples): Seconds per run: to the first token, or per decoded token of
          every conversation.
        peak (tuple[int, int]): Bytes that a prefill takes above the weights, plain and patched.
        cached (int): Tokens in the cache before a prompt.
    """

    strategy: str
    batch_size: int
    length: int
    tokens: int
    plain: Samples
    patched: Samples
    peak: tuple[int, int] | None = None
    cached: int = 0

    @property
    def ratio(self) -> Samples:
        """Time of the patched model over that of the plain one, round by round."""
        return self.patched.over(self.plain)

    def speed(self, seconds: Samples) -> float:
        """Tokens per second."""
        return self.tokens / seconds.median

    def to_dict(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "strategy": self.strategy,
            "batch_size": self.batch_size,
            "length": self.length,
            "cached": self.cached,
            "ratio": self.ratio.to_dict(),
        }
        for i, (name, seconds) in enumerate([(PLAIN, self.plain), ("patched", self.patched)]):
            row[name] = {"tokens_per_second": self.speed(seconds), "seconds": seconds.to_dict()}
            if self.peak is not None:
                row[name]["peak_bytes"] = self.peak[i]
        return row


def prefill_rows(
    pair: Pair, batch_size: int, length: int, effort: Effort, cached: int = 0
) -> list[Row]:
    """Time to the first token after a prompt, and the memory it takes, per strategy.

    With ``cached`` tokens before it, the prompt is one call of which all logits are computed: what
    a chat's turn and the verification of drafts are.
    """
    prompt = mx.random.randint(0, vocabulary(pair.plain), (batch_size, length))
    mx.eval(prompt)
    models = {PLAIN: pair.plain, **pair.patched}
    peaks: dict[str, list[int]] = {name: [] for name in models}

    warm = {name: cache_at(model, batch_size, cached) for name, model in models.items() if cached}

    def run(name: str) -> float:
        model, cache = models[name], deepcopy(warm[name]) if cached else None
        work: Callable[[], object] = partial(first_token, model, prompt)
        if cache is not None:
            mx.eval(cached_arrays(cache))
            work = partial(one_call, model, prompt, cache)
        seconds, peak = with_peak(partial(effort.time, work))
        peaks[name].append(peak)
        return seconds

    seconds = alternate({name: partial(run, name) for name in models}, effort)
    peak = {name: int(median(taken)) for name, taken in peaks.items()}
    return [
        Row(
            *(name, batch_size, length, batch_size * length),
            *(seconds[PLAIN], seconds[name], (peak[PLAIN], peak[name]), cached),
        )
        for name in pair.patched
    ]


def decode_rows(
    pair: Pair, batch_size: int, depth: int, tokens: int, effort: Effort, mixed: bool = False
) -> list[Row]:
    """Time per decoded token with ``depth`` tokens in the cache, per strategy.

    ``mixed``: every second conversation only reads, and where writes go by message the first is
    within one, as in a server's batch.
    """
    models = {PLAIN: pair.plain, **pair.patched}
    caches = {name: cache_at(model, batch_size, depth) for name, model in models.items()}
    for name in pair.patched if mixed else ():
        mix(caches[name], tokens)
    contestants = {
        name: partial(decode_seconds, model, caches[name], tokens, effort)
        for name, model in models.items()
    }
    seconds = alternate(contestants, effort)
    return [
        Row(name, batch_size, depth, batch_size, seconds[PLAIN], seconds[name])
        for name in pair.patched
    ]


def first_token(model: nn.Module, prompt: mx.array) -> mx.array:
    """Prefill as mlx-lm does it: all tokens but the last in large steps, then one for logits.

    Args:
        model (nn.Module): With or without a memory.
        prompt (mx.array): Token ids [B, T].

    Returns:
        mx.array: The likeliest next token of each conversation, [B].
    """
    cache = make_prompt_cache(model)
    last = prompt.shape[1] - 1
    with writes(model, cache, prompt.shape):
        for start in range(0, last, PREFILL_STEP):
            model(prompt[:, start : min(start + PREFILL_STEP, last)], cache=cache)
            mx.eval([entry.state for entry in cache])  # as mlx-lm does
            mx.clear_cache()
        token = mx.argmax(model(prompt[:, last:], cache=cache)[:, -1], axis=-1)
        mx.eval(token)
    return token


def one_call(model: nn.Module, prompt: mx.array, cache: list) -> None:
    """All of a prompt [B, T] in one call behind what is cached, and its logits."""
    with writes(model, cache, prompt.shape):
        mx.eval(model(prompt, cache=cache), [entry.state for entry in cache])


def writes(model: nn.Module, cache: list, shape: Sequence[int]) -> AbstractContextManager:
    """The spans of a conversation of equal messages, for a memory that writes by message."""
    if not is_attached(model) or config_of(model).memory_write_granularity == "token":
        return nullcontext()
    ids = [[token // MESSAGE for token in range(shape[1])]] * shape[0]
    by_sentence = config_of(model).memory_write_granularity == "sentence_mean"
    return write_spans(cache, ids, ids if by_sentence else None)


def cache_at(model: nn.Module, batch_size: int, depth: int) -> list:
    """A prompt cache with ``depth`` random tokens in it.

    Where all caches are plain KV caches, random keys and values are put there: at 8 conversations
    of 2048 tokens a prefill would take longer than all else.
    """
    cache = make_prompt_cache(model)
    tokens = mx.random.randint(0, vocabulary(model), (batch_size, depth))
    caches = kv_caches(cache)
    simple = all(type(kv) is KVCache for kv in caches)
    model(tokens[:, :1] if simple else tokens, cache=cache)
    mx.eval(cached_arrays(cache))
    if simple:
        for kv in caches:
            kv.keys, kv.values = (
                mx.random.normal((*x.shape[:2], depth, x.shape[3])).astype(x.dtype)
                for x in (kv.keys, kv.values)
            )
            kv.offset = depth
            mx.eval(kv.keys, kv.values)
    return cache


def mix(cache: list, tokens: int) -> None:
    """Conversations as a server has them together, for so many timed tokens."""
    for memory in memories(cache).values():
        rows = range(memory.batch_size)
        memory.read_only = [i % 2 == 1 for i in rows]
        if memory.granularity != "token":
            ids = [np.zeros(UNTIMED + tokens if i == 0 else 0, int) for i in rows]
            memory.ingest = Ingest(ids, aligned=False)


def decode_seconds(model: nn.Module, cache: list, tokens: int, effort: Effort) -> float:
    """Seconds per step of greedy decoding, one step ahead of its result as in mlx-lm."""
    cache = deepcopy(cache)
    batch_size = cached_arrays(cache)[0].shape[0]

    def steps(token: mx.array, count: int) -> mx.array:
        for _ in range(count):
            following = mx.argmax(model(token, cache=cache)[:, -1], axis=-1, keepdims=True)
            mx.async_eval(following)
            mx.eval(token)
            token = following
        mx.eval(token)
        return token

    token = steps(mx.zeros((batch_size, 1), mx.int32), UNTIMED)
    return effort.time(lambda: steps(token, tokens)) / tokens


def with_peak(work: Callable[[], float]) -> tuple[float, int]:
    """What ``work`` returns, and the bytes it needs at its height above what was in use before."""
    mx.synchronize()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    result = work()
    mx.synchronize()
    return result, mx.get_peak_memory() - before


def memory_facts(model: nn.Module) -> dict[str, int]:
    """Bytes that one conversation keeps: its memory, and the KV cache of every token beside it."""
    cache = make_prompt_cache(model)
    model(mx.zeros((1, 1), mx.int32), cache=cache)
    mx.eval(cached_arrays(cache))
    growing = [kv for kv in kv_caches(cache) if type(kv) is KVCache]
    return {
        "state_bytes": sum(memory.nbytes for memory in memories(cache).values()),
        "kv_bytes_per_token": sum(
            kv.nbytes // kv.keys.shape[2] for kv in growing if kv.keys is not None
        ),
    }


def kv_caches(cache: list) -> list:
    """The entries of a prompt cache as the plain model has them."""
    plain = [entry.kv if isinstance(entry, DeltaMemCache) else entry for entry in cache]
    return [entry for entry in plain if entry is not None]


def vocabulary(model: nn.Module) -> int:
    """Token ids that the model surely has."""
    args = getattr(model, "args", None)
    return getattr(args, "vocab_size", None) or 100
