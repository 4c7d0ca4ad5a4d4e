"""Which attentions of a model can keep a memory, and which part of its cache each one gets."""

import copy
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache

from ..config import DeltaMemConfig
from .projections import OUTPUT, PACKED, SEPARATE, Projections, candidates, find_projections

CachePath = tuple[int, ...]


@dataclass
class Site:
    """An attention that can keep a memory: where it is, and which part of the cache it gets."""

    layer: int
    name: str
    attention: nn.Module
    projections: Projections
    cache_path: CachePath


class Found(NamedTuple):
    """Where a memory can be kept, and where not.

    Args:
        sites (list[Site]): The attentions that can keep one.
        problems (list[str]): Why others cannot.
        sharing (list[int]): Layers that use the keys and values of other layers.
    """

    sites: list[Site]
    problems: list[str]
    sharing: list[int]


def choose_sites(model: nn.Module, config: DeltaMemConfig) -> list[Site]:
    """One site per wanted layer; every reason why there is none is listed."""
    count = len(model.layers)
    outside = [i for i in config.target_layers if i >= count]
    if outside:
        raise ValueError(f"target_layers {outside}: the model has layers 0 to {count - 1}.")
    sites, problems, sharing = find_sites(model)
    chosen = []
    for layer in config.target_layers or range(count):
        here = [site for site in sites if site.layer == layer]
        named = [s for s in here if s.name.rpartition(".")[2] in config.target_modules]
        here = named or here
        if len(here) > 1:
            names = ", ".join(site.name for site in here)
            problems.append(
                f"layer {layer} has several attentions ({names}): name one in target_modules"
            )
        elif here:
            chosen.append(here[0])
        elif config.target_layers:
            problems.append(f"layer {layer} has no attention with keys and values of its own")
    if chosen and sharing and not config.target_layers:
        own = [site.layer for site in chosen]
        problems.append(
            f"layers {sharing} use the keys and values of other layers; to give a memory to those "
            f"that have their own, set target_layers to {own}"
        )
    if problems or not chosen:
        raise ValueError(_refusal(model, problems))
    return chosen


def _refusal(model: nn.Module, problems: list[str]) -> str:
    name = getattr(model, "model_type", type(model).__name__)
    if not problems:
        classes = sorted(
            {
                f"{path} ({type(m).__name__})"
                for layer in model.layers
                for path, m in layer.named_modules()
                if path and "cache" in _parameters(type(m))
            }
        )
        problems = [
            "looked for an attention with q_proj, k_proj, v_proj or one of "
            f"{', '.join(PACKED)}, an output projection ({', '.join(OUTPUT)}) and a KV cache; "
            f"found {', '.join(classes) or 'no attention'}"
        ]
    return f"Cannot attach a memory to {name!r}: " + "; ".join(dict.fromkeys(problems)) + "."


def find_sites(model: nn.Module) -> Found:
    """All attentions of the model that can keep a memory, and reasons why others cannot.

    Which cache an attention gets is not in its code but in its model's, so one token is run
    through the model, recording the calls and never evaluating the result.
    """
    found = {
        id(attention): (layer, name, attention, projections)
        for layer, block in enumerate(model.layers)
        for name, attention, projections in candidates(block)
        if "cache" in _parameters(type(attention))
    }
    caches = make_prompt_cache(model)
    received = _probe(model, [entry[2] for entry in found.values()], caches)
    sites, problems, taken = [], [], {}
    sharing = [i for i, block in enumerate(model.layers) if any(map(_only_asks, block.modules()))]
    paths = {id(c): path for path, c in _walk(caches)}
    for key, (layer, name, attention, projections) in found.items():
        got = [c for c in received.get(key, []) if c is not None]
        if key in received and not got:
            sharing.append(layer)
        if not any(hasattr(c, "update_and_fetch") or isinstance(c, CacheList) for c in got):
            continue  # not a softmax attention: a recurrent layer keeps its own state
        if len({id(c) for c in got}) > 1:
            problems.append(f"layer {layer} uses several KV caches a token")
            continue
        path = paths[id(got[0])]
        if path in taken:
            problems.append(f"layers {taken[path]} and {layer} share a KV cache")
        taken[path] = layer
        sites.append(Site(layer, name, attention, projections, path))
    return Found(sites, problems, sorted(set(sharing)))


def _only_asks(module: nn.Module) -> bool:
    """Whether a module has queries and an output projection, but no keys and values."""
    queries = {names[0] for names in SEPARATE} & module.keys()
    return bool(queries and set(OUTPUT) & module.keys()) and find_projections(module) is None


def _probe(model: nn.Module, attentions: list[nn.Module], caches: list) -> dict[int, list[object]]:
    """Run one token lazily and return which caches each attention was called with."""
    received: dict[int, list[object]] = {}
    classes = [type(attention) for attention in attentions]
    try:
        for attention, base in zip(attentions, classes, strict=True):
            attention.__class__ = _recorder(base, received)
        model(mx.array([[0]]), cache=copy.copy(caches))
    except Exception as error:
        name = getattr(model, "model_type", type(model).__name__)
        raise ValueError(
            f"Cannot attach a memory to {name!r}: one token could not be run through the plain "
            f"model on this device ({error})."
        ) from error
    finally:
        for attention, base in zip(attentions, classes, strict=True):
            attention.__class__ = base
    return received


def _recorder(base: type[nn.Module], received: dict[int, list[object]]) -> type[nn.Module]:
    index = list(_parameters(base)).index("cache") - 1  # self

    def record(self: nn.Module, *args: object, **kwargs: object) -> object:
        cache = kwargs["cache"] if "cache" in kwargs else args[index] if len(args) > index else None
        received.setdefault(id(self), []).append(cache)
        return base.__call__(self, *args, **kwargs)

    return type(base.__name__, (base,), {"__call__": record})


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(cls.__call__).parameters)


def _walk(caches: list, path: CachePath = ()) -> Iterator[tuple[CachePath, object]]:
    for i, cache in enumerate(caches):
        yield (*path, i), cache
        if isinstance(cache, CacheList):
            yield from _walk(cache.caches, (*path, i))
