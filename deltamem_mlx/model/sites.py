"""Which attentions of a model can keep a memory, and which part of its cache each one gets."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache, CacheList

from ..config import DeltaMemConfig
from .dry_run import DryRun, WhatRan
from .projections import OUTPUT, PACKED, Projections, candidates

CachePath = tuple[int, ...]


@dataclass
class Site:
    """An attention that can keep a memory: where it is, and which part of the cache it gets.

    Args:
        layer (int): Number of the layer. In models with several such attentions in a layer they
          are counted through: with two, ``model.layers[i]`` has the layers 2i and 2i + 1.
        block (int): Index in ``model.layers``.
        name (str): Path in the layer.
        attention (nn.Module): The attention itself.
        projections (Projections): Those that can be corrected.
        cache_path (CachePath): Indices into the prompt cache, and the cache lists in it.
        own_cache (bool): Whether the model hands it a cache when it is called without any.
    """

    layer: int
    block: int
    name: str
    attention: nn.Module
    projections: Projections
    cache_path: CachePath
    own_cache: bool = False

    @property
    def module(self) -> str:
        """The name under which the layer holds it, alone or in a list."""
        return next(part for part in reversed(self.name.split(".")) if not part.isdigit())


class Found(NamedTuple):
    """Where a memory can be kept, and where not.

    Args:
        sites (list[Site]): The attentions that can keep one.
        reasons (dict[int, str]): By layer, why an attention there cannot, said of several.
        entries (int): Entries of the plain model's prompt cache.
    """

    sites: list[Site]
    reasons: dict[int, str]
    entries: int


class Choice(NamedTuple):
    """Where a memory goes.

    Args:
        sites (list[Site]): The attentions that get one.
        note (str): One line on attentions that could keep one and get none; empty: there are none.
    """

    sites: list[Site]
    note: str


def choose_sites(model: nn.Module, config: DeltaMemConfig) -> list[Site]:
    """The attentions that get a memory, in order of the layers.

    Raises:
        ValueError: If there is none, or none where the config wants one; every reason is listed.
    """
    return choose(model, config).sites


def choose(model: nn.Module, config: DeltaMemConfig) -> Choice:
    """``choose_sites``, with a line on the layers that were left out."""
    found = find_sites(model)
    named = [_named(found, block, config) for block in range(len(model.layers))]
    most = max(1, *map(len, named))
    count = len(named) * most
    outside = [i for i in config.target_layers if i >= count]
    if outside:
        raise ValueError(f"target_layers {outside}: the model has layers 0 to {count - 1}.")
    wanted = [
        replace(site, layer=block * most + i)
        for block, here in enumerate(named)
        for i, site in enumerate(here)
        if not config.target_layers or block * most + i in config.target_layers
    ]
    able = [s for s in wanted if set(config.delta_heads) <= set(s.projections.heads)]
    left_out = _by_reason([*found.reasons.items(), *_lacking(wanted, config)])
    problems = list(_problems(found, wanted, config)) + _gaps(found, able)
    if problems or not able:
        raise ValueError(_refusal(model, problems or left_out))
    layers = spans(site.layer for site in able)
    note = f"A memory in layers {layers}: {'; '.join(left_out)}." if left_out else ""
    return Choice(able, note)


def _named(found: Found, block: int, config: DeltaMemConfig) -> list[Site]:
    """The attentions of a layer that the config means."""
    here = [site for site in found.sites if site.block == block]
    return [s for s in here if {s.module, s.name} & set(config.target_modules)] or here


def _problems(found: Found, wanted: list[Site], config: DeltaMemConfig) -> Iterator[str]:
    """What stands against the config's wishes."""
    for block in sorted({site.block for site in wanted}):
        here = [site for site in wanted if site.block == block]
        if len({site.module for site in here}) > 1 and not any(
            {s.module, s.name} & set(config.target_modules) for s in here
        ):
            names = ", ".join(site.name for site in here)
            yield f"layer {block} has several attentions ({names}): name one in target_modules"
    if config.target_layers:
        none = set(config.target_layers) - {site.layer for site in wanted}
        reasons = [(i, found.reasons.get(i, "have no attention with a KV cache")) for i in none]
        yield from _by_reason([*reasons, *_lacking(wanted, config)])


def _lacking(wanted: list[Site], config: DeltaMemConfig) -> Iterator[tuple[int, str]]:
    """Layers where the heads that the config corrects are not all there to be corrected."""
    for site in wanted:
        missing = [h for h in config.delta_heads if h not in site.projections.heads]
        if missing:
            yield (
                site.layer,
                f"have no {' and '.join(missing)} projection of their own; name q and o alone in "
                "delta_heads to correct those there",
            )


def _by_reason(reasons: Iterable[tuple[int, str]]) -> list[str]:
    """A line for each reason, with the layers that it holds for."""
    layers: dict[str, list[int]] = {}
    for layer, reason in reasons:
        layers.setdefault(reason, []).append(layer)
    return [f"layers {spans(here)} {reason}" for reason, here in layers.items()]


def _gaps(found: Found, able: list[Site]) -> list[str]:
    """Layers between others whose memory has an entry of its own at the end of the prompt cache."""
    added = {s.cache_path[0]: s.layer for s in able if s.cache_path[0] >= found.entries}
    missing = set(range(found.entries, max(added, default=0))) - added.keys()
    if not missing:
        return []
    return [
        f"layers {spans(set(added.values()))} use the keys and values of other layers; a memory "
        f"there needs one in layers {spans(missing)} as well"
    ]


def spans(layers: Iterable[int]) -> str:
    """Layer numbers as ``0 to 4, 6``."""
    ordered, parts = sorted(layers), []
    while ordered:
        n = next((i for i, x in enumerate(ordered) if x != ordered[0] + i), len(ordered))
        parts.append(str(ordered[0]) if n == 1 else f"{ordered[0]} to {ordered[n - 1]}")
        ordered = ordered[n:]
    return ", ".join(parts)


def _refusal(model: nn.Module, problems: list[str]) -> str:
    name = getattr(model, "model_type", type(model).__name__)
    if not problems:
        classes = sorted(
            {
                f"{path} ({type(m).__name__})"
                for layer in model.layers
                for path, m in layer.named_modules()
                if path and takes_cache(m)
            }
        )
        problems = [
            "looked for an attention with q_proj, k_proj, v_proj, or q_b_proj, or one of "
            f"{', '.join(PACKED)}, an output projection ({', '.join(OUTPUT)}) and a KV cache; "
            f"found {', '.join(classes) or 'no attention'}"
        ]
    return f"Cannot attach a memory to {name!r}: " + "; ".join(dict.fromkeys(problems)) + "."


def find_sites(model: nn.Module) -> Found:
    """All attentions of the model that can keep a memory, and reasons why others cannot.

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
