"""A session of a model that lies in several processes: put together to be saved, dealt out again.

What is saved is what one process would have: any number of processes can go on with it.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map
from mlx_lm.models.cache import CacheList, make_prompt_cache

from ..memory.actions import PromptCache, memories
from ..model.layer_cache import DeltaMemCache, NoKeys
from ..model.patch import attachment, spread_of_memory
from ..model.spread import Spread
from ..model.stand_in import put_stand_in, without_stand_in
from ..ranks import Ranks
from .context import Mark, kv_caches
from .file import SavedSession
from .past import Before

States = dict[int, tuple[mx.array | None, list[int]]]  # of a mark


def whole_session(saved: SavedSession, model: nn.Module) -> SavedSession:
    """The session with what all processes have of its context and memory; all of them call it.

    Raises:
        ValueError: If the context is of a kind that cannot be put together.
    """
    spread = spread_of_memory(model)
    if spread.ranks.alone:
        return saved
    if not spread.pipelined:
        caches = spread.ranks.gather(saved.cache)
        return replace(saved, cache=[_merged(parts) for parts in zip(*caches, strict=True)])
    own = without_stand_in(saved.cache, spread)
    parts = spread.ranks.gather(own)[::-1]  # the last process has the first layers
    memory = whole_memory([before.mark for before in saved.past], spread)
    past = [_with_memory(b, m) for b, m in zip(saved.past, memory, strict=True)]
    return replace(saved, cache=[entry for part in parts for entry in part], past=past)


def whole_memory(marks: Sequence[Mark], spread: Spread) -> list[States]:
    """What all processes have of the memory at each mark; all of them call it in a pipeline."""
    here = [mark.memory for mark in marks]
    if not spread.pipelined:
        return [dict(sorted(memory.items())) for memory in here]
    own = [{i: memory[i] for i in spread.mine} for memory in here]
    parts = spread.ranks.gather(own)[::-1]
    return [
        dict(sorted(held for part in at_once for held in part.items()))
        for at_once in zip(*parts, strict=True)
    ]


def part_here(saved: SavedSession, model: nn.Module) -> SavedSession:
    """What this process has of a session that was read whole."""
    spread, cache, past = spread_of_memory(model), saved.cache, saved.past
    if spread.ranks.alone:
        return saved
    if spread.pipelined:
        whole = memories(cache)
        cache = cache[spread.first : spread.first + len(model.layers)]
        put_stand_in(cache, attachment(model).mark, whole[spread.kept[0]])
        past = [_with_memory(b, {i: b.mark.memory[i] for i in spread.kept}) for b in past]
    else:
        _deal_out(cache, model, spread.ranks)
    for memory in memories(cache).values():
        memory.belong_to(attachment(model).mark)
    return replace(saved, cache=cache, past=past)


def fresh_caches(model: nn.Module) -> Callable[[int | None], PromptCache]:
    """Gives an empty prompt cache of the whole model, of a given ``max_kv_size``."""
    spread = spread_of_memory(model)
    if not spread.pipelined:
        return lambda size: make_prompt_cache(model, size)
    made = make_prompt_cache(model), make_prompt_cache(model, 1)
    kinds = [without_stand_in(cache, spread) for cache in made]
    parts = spread.ranks.gather(kinds)[::-1]
    whole = [[entry for part in parts for entry in part[i]] for i in range(2)]
    return lambda size: whole[size is not None]


def _with_memory(before: Before, memory: States) -> Before:
    return before._replace(mark=before.mark._replace(memory=memory))


def _merged(parts: Sequence[Any]) -> Any:
    """One entry of a prompt cache, of those that the processes have, each of some KV heads."""
    first = parts[0]
    if isinstance(first, DeltaMemCache):
        return DeltaMemCache(_merged([part.caches[0] for part in parts]), *first.memories)
    if isinstance(first, CacheList):
        rows = zip(*(part.caches for part in parts), strict=True)
        return CacheList(*map(_merged, rows))
    if isinstance(first, NoKeys):
        return first
    if not hasattr(first, "keys"):
        raise ValueError(
            f"The context of this model ({type(first).__name__}) cannot be put together from "
            "processes that work in parallel. Give a file name ending in .safetensors, for the "
            "memory alone."
        )
    new = copy.copy(first)
    if first.keys is not None:
        new.keys, new.values = (
            tree_map(lambda *heads: _joined(heads), *(getattr(part, name) for part in parts))
            for name in ("keys", "values")
        )
    return new


def _joined(heads: Sequence[mx.array]) -> mx.array:
    """Heads of all processes [B, H, T, D], those that several have only once."""
    different = [heads[0]]
    for before, those in pairwise(heads):
        if not mx.array_equal(before, those).item():
            different.append(those)
    return mx.concatenate(different, axis=1)


def _deal_out(cache: PromptCache, model: nn.Module, ranks: Ranks) -> None:
    """Leave this process's KV heads in a prompt cache: as many as a token makes here."""
    fed = make_prompt_cache(model)
    model(mx.array([[0]]), cache=fed)
    mx.eval([c.state for c in fed])
    for kv, here in zip(kv_caches(cache), kv_caches(fed), strict=True):
        if getattr(kv, "keys", None) is not None:
            own = partial(_own_heads, count=here.keys.shape[1], ranks=ranks)
            kv.keys, kv.values = tree_map(own, kv.keys), tree_map(own, kv.values)


def _own_heads(heads: mx.array, *, count: int, ranks: Ranks) -> mx.array:
    copies = max(1, ranks.size * count // heads.shape[1])
    start = ranks.rank // copies * count
    return mx.contiguous(heads[:, start : start + count])
