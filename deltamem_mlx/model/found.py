"""Which attentions of a model can keep a memory, and which part of its cache each one gets."""

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList

from .dry_run import DryRun, WhatRan
from .projections import Projections, candidates

CachePath = tuple[int, ...]


@dataclass
class Site:
    """An attention that can keep a memory: where it is, and which part of the cache it gets.

    Args:
        layer (int): Number of the layer. In models with several such attentions in a layer they
          are counted through: with two, ``model.layers[i]`` has the layers 2i and 2i + 1.
        block (int): Index among the layers of the whole model.
        name (str): Path in the layer.
        attention (nn.Module): The attention itself; None: another process has it.
        projections (Projections): Those that can be corrected.
        cache_path (CachePath): Indices into the prompt cache, and the cache lists in it.
        own_cache (bool): Whether the model hands it a cache when it is called without any.
        rank (int): Which process has it, in a pipeline.
    """

    layer: int
    block: int
    name: str
    attention: nn.Module | None
    projections: Projections
    cache_path: CachePath
    own_cache: bool = False
    rank: int = 0

    @property
    def module(self) -> str:
        """The name under which the layer holds it, alone or in a list."""
        return next(part for part in reversed(self.name.split(".")) if not part.isdigit())


class Found(NamedTuple):
    """Where a memory can be kept, and where not.

    Args:
        sites (list[Site]): The attentions that can keep one.
        reasons (dict[int, str]): By layer, why an attention there cannot, said of several.
        entries (int): Entries of the plain model's prompt cache, as far as it lies here.
    """

    sites: list[Site]
    reasons: dict[int, str]
    entries: int


def find_sites(model: nn.Module) -> Found:
    """All attentions here that can keep a memory, and reasons why others cannot.

    Which cache an attention gets, and which projections it uses, is not in its names but in its
    model's forward, so one token is run through it.
    """
    named = [
        (block, *candidate)
        for block, layer in enumerate(model.layers)
        for candidate in candidates(layer)
    ]
    run = DryRun(model, [(attention, projections) for *_, attention, projections in named])
    paths = {id(c): path for path, c in _walk(run.caches)}
    found = Found([], {}, run.entries)
    for block, name, attention, projections in named:
        seen = run.seen.get(id(attention), WhatRan())
        if any(isinstance(c, ArraysCache) for c in seen.caches):
            continue  # not a softmax attention: a recurrent layer keeps its own state
        places = {paths.get(id(cache)) for cache in seen.caches}
        if reason := _reason(seen, projections, places):
            found.reasons[block] = reason
            continue
        called = {head for head in projections.heads if projections.attribute(head) in seen.called}
        usable = replace(seen.layout or projections, dims=seen.width).restricted(called)
        path = next(place for place in places if place is not None)
        found.sites.append(Site(block, block, name, attention, usable, path, seen.own_cache))
    return found


def _reason(seen: WhatRan, projections: Projections, places: set[CachePath | None]) -> str:
    """Why an attention cannot keep a memory, said of several layers; empty: it can."""
    if not seen.called:
        return "have their projections called past the attention"
    if not places or None in places:
        return "are given no part of the prompt cache"
    if len(places) > 1:
        return "use several KV caches a token"
    if seen.layout is None:
        return f"have a {projections.packed} whose rows lie in no order that is known here"
    missing = [h for h in "qo" if projections.attribute(h) not in seen.called]
    return f"do not use their {' and '.join(missing)} projection" if missing else ""


def takes_cache(module: nn.Module) -> bool:
    """Whether a module is called with a part of the prompt cache."""
    return "cache" in inspect.signature(type(module).__call__).parameters


def _walk(caches: Sequence[object], path: CachePath = ()) -> Iterator[tuple[CachePath, object]]:
    for i, cache in enumerate(caches):
        yield (*path, i), cache
        if isinstance(cache, CacheList):
            yield from _walk(cache.caches, (*path, i))
