"""Attach a memory to a loaded mlx-lm model, and take it away again."""

import copy
import inspect
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache, make_prompt_cache

from .attention import DeltaMemAttention, memory_class
from .cache import DeltaMemCache
from .config import DeltaMemConfig
from .projections import OUTPUT, PACKED, Projections, candidates

Path = tuple[int, ...]


@dataclass
class Site:
    """An attention that can keep a memory: where it is, and which part of the cache it gets."""

    layer: int
    name: str
    attention: nn.Module
    projections: Projections
    cache_path: Path


@dataclass(frozen=True)
class Attached:
    """What ``detach`` needs to give the original model back."""

    paths: dict[Path, DeltaMemAttention]
    trainable: dict[str, set[str]]
    base_model: str | None = None


class DeltaMemModel(nn.Module):
    """Mixin over an mlx-lm model: its prompt cache holds a memory per patched layer."""

    def make_cache(self, max_kv_size: int | None = None) -> list:
        """A prompt cache whose patched layers have a memory beside their KV cache.

        ``make_prompt_cache`` asks a model that has this method without passing its
        ``max_kv_size`` on, so it is read from there.
        """
        caller = sys._getframe(1)
        if max_kv_size is None and caller.f_code is make_prompt_cache.__code__:
            max_kv_size = caller.f_locals["max_kv_size"]
        caches = list(_base_caches(self, super(), max_kv_size))
        for path, attention in self._memory_attached.paths.items():
            kv = _at(caches, path)
            caches = _replaced(caches, path, DeltaMemCache(kv, attention.new_memory()))
        return caches


def _base_caches(model: nn.Module, base: object, max_kv_size: int | None) -> list:
    """The caches that mlx-lm would make for the model without a memory."""
    if hasattr(base, "make_cache"):
        return base.make_cache()
    if max_kv_size is None:
        return [KVCache() for _ in model.layers]
    return [RotatingKVCache(max_size=max_kv_size, keep=4) for _ in model.layers]


def attach(model: nn.Module, config: DeltaMemConfig, *, seed: int | None = None) -> nn.Module:
    """Patch a loaded mlx-lm model in place with a freshly initialised adapter.

    The base is frozen, the adapter trainable. Base parameters keep their names; the adapter's
    lie beside the projections of each attention.

    Args:
        model (nn.Module): A model from ``mlx_lm.load``, quantized or not.
        config (DeltaMemConfig): The adapter's settings.
        seed (int): Seed of the random initial weights. Default: mlx's global state.

    Returns:
        nn.Module: The same model.

    Raises:
        ValueError: If the model has an adapter already, or no attention that can keep a memory.
    """
    if is_attached(model):
        raise ValueError("The model has a δ-mem adapter already: call dm.detach(model) first.")
    sites = choose_sites(model, config)
    trainable = {name: set(module._no_grad) for name, module in model.named_modules()}
    if seed is not None:
        mx.random.seed(seed)
    model.freeze()
    for site in sites:
        site.attention.__class__ = memory_class(type(site.attention))
        site.attention.add_memory(site.layer, site.projections, config)
    paths = {site.cache_path: site.attention for site in sites}
    model.__class__ = _model_class(type(model))
    model._memory_attached = Attached(paths, trainable)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Give the original model back: same classes, same parameters, bit-identical outputs.

    Raises:
        ValueError: If the model has no adapter.
    """
    attached = attachment(model)
    for attention in attached.paths.values():
        attention.remove_memory()
        attention.__class__ = type(attention).__mro__[2]
    del model._memory_attached
    model.__class__ = type(model).__mro__[2]
    for name, module in model.named_modules():
        module._no_grad = set(attached.trainable[name])
    return model


def is_attached(model: nn.Module) -> bool:
    """Whether the model has a δ-mem adapter."""
    return isinstance(model, DeltaMemModel)


def attachment(model: nn.Module) -> Attached:
    """The patches of a model.

    Raises:
        ValueError: If the model has no adapter.
    """
    if not is_attached(model):
        raise ValueError("The model has no δ-mem adapter: call dm.load_adapter or dm.attach first.")
    return model._memory_attached


def memory_layers(model: nn.Module) -> dict[int, DeltaMemAttention]:
    """Layer index → the attention that keeps a memory, in order of the layers."""
    found = {a._memory_layer: a for a in attachment(model).paths.values()}
    return dict(sorted(found.items()))


def config_of(model: nn.Module) -> DeltaMemConfig:
    """The settings of the model's adapter."""
    return next(iter(memory_layers(model).values()))._memory_config


@lru_cache
def _model_class(base: type[nn.Module]) -> type[DeltaMemModel]:
    return type(f"DeltaMem{base.__name__}", (DeltaMemModel, base), {})


def choose_sites(model: nn.Module, config: DeltaMemConfig) -> list[Site]:
    """One site per wanted layer; every reason why there is none is listed."""
    count = len(model.layers)
    outside = [i for i in config.target_layers if i >= count]
    if outside:
        raise ValueError(f"target_layers {outside}: the model has layers 0 to {count - 1}.")
    sites, problems = find_sites(model)
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
            problems.append(f"layer {layer} has no attention to patch")
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


def find_sites(model: nn.Module) -> tuple[list[Site], list[str]]:
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
    paths = {id(c): path for path, c in _walk(caches)}
    for key, (layer, name, attention, projections) in found.items():
        got = [c for c in received.get(key, []) if c is not None]
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
    return sites, problems


def _probe(model: nn.Module, attentions: list[nn.Module], caches: list) -> dict[int, list[object]]:
    """Run one token lazily and return which caches each attention was called with."""
    received: dict[int, list[object]] = {}
    classes = [type(attention) for attention in attentions]
    try:
        for attention, base in zip(attentions, classes, strict=True):
            attention.__class__ = _recorder(base, received)
        model(mx.array([[0]]), cache=copy.copy(caches))
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


def _walk(caches: list, path: Path = ()) -> Iterator[tuple[Path, object]]:
    for i, cache in enumerate(caches):
        yield (*path, i), cache
        if isinstance(cache, CacheList):
            yield from _walk(cache.caches, (*path, i))


def _at(caches: list, path: Path) -> object:
    for i in path:
        caches = (caches.caches if isinstance(caches, CacheList) else caches)[i]
    return caches


def _replaced(caches: list, path: Path, new: object) -> list:
    i, *rest = path
    caches = list(caches)
    caches[i] = CacheList(*_replaced(caches[i].caches, tuple(rest), new)) if rest else new
    return caches
