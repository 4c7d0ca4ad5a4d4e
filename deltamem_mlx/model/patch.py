"""Attach a memory to a loaded mlx-lm model, and take it away again."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, KVCache, RotatingKVCache

from .. import builtin
from ..compat import wanted_max_kv_size
from ..config import DeltaMemConfig
from .attention import DeltaMemAttention, memory_class
from .cache import DeltaMemCache
from .sites import CachePath, Site, choose_sites

BUILTIN = "builtin"


@dataclass(frozen=True)
class Attached:
    """What ``detach`` needs to give the original model back."""

    paths: dict[CachePath, DeltaMemAttention]
    trainable: dict[str, set[str]]
    base_model: str | None = None


class DeltaMemModel(nn.Module):
    """Mixin over an mlx-lm model: its prompt cache holds a memory per patched layer."""

    base_class: type[nn.Module]

    def make_cache(self, max_kv_size: int | None = None) -> list:
        """A prompt cache whose patched layers have a memory beside their KV cache.

        ``make_prompt_cache`` asks a model that has this method without passing its
        ``max_kv_size`` on, so it is read from there.
        """
        if max_kv_size is None:
            max_kv_size = wanted_max_kv_size(sys._getframe(1))
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


def attach(
    model: nn.Module,
    config: DeltaMemConfig,
    *,
    seed: int | None = None,
    sites: Sequence[Site] | None = None,
) -> nn.Module:
    """Patch a loaded mlx-lm model in place with a freshly initialised adapter.

    The base is frozen, the adapter trainable. Base parameters keep their names; the adapter's
    lie beside the projections of each attention.

    Args:
        model (nn.Module): A model from ``mlx_lm.load``, quantized or not.
        config (DeltaMemConfig): The adapter's settings.
        seed (int): Seed of the random initial weights. Default: mlx's global state.
        sites (Sequence[Site]): What ``choose_sites`` found for this model and config, so that it
          need not look again. Default: look.

    Returns:
        nn.Module: The same model.

    Raises:
        ValueError: If the model has an adapter already, or no attention that can keep a memory.
    """
    refuse_attached(model)
    sites = choose_sites(model, config) if sites is None else sites
    for module in model.modules():  # not every mlx-lm model calls the constructor that sets it
        vars(module).setdefault("_no_grad", set())
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
        attention.__class__ = type(attention).base_class
    del model._memory_attached
    model.__class__ = type(model).base_class
    for name, module in model.named_modules():
        module._no_grad = set(attached.trainable[name])
    return model


def is_attached(model: nn.Module) -> bool:
    """Whether the model has a δ-mem adapter."""
    return isinstance(model, DeltaMemModel)


def refuse_attached(model: nn.Module) -> None:
    """Raise ValueError if the model has an adapter already."""
    if is_attached(model):
        raise ValueError("The model has a δ-mem adapter already: call dm.detach(model) first.")


def attachment(model: nn.Module) -> Attached:
    """The patches of a model.

    Raises:
        ValueError: If the model has no adapter.
    """
    if not is_attached(model):
        raise ValueError("The model has no δ-mem adapter: call dm.load_adapter or dm.attach first.")
    return model._memory_attached


def set_base_model(model: nn.Module, source: str | None) -> None:
    """Keep which model this is, as mlx-lm would be given it, for what is saved from it."""
    if source is not None and Path(source).resolve() == Path(builtin.__file__).parent / "base":
        source = BUILTIN
    model._memory_attached = replace(attachment(model), base_model=source)


def memory_layers(model: nn.Module) -> dict[int, DeltaMemAttention]:
    """Layer index → the attention that keeps a memory, in order of the layers."""
    found = {a.memory_layer: a for a in attachment(model).paths.values()}
    return dict(sorted(found.items()))


def config_of(model: nn.Module) -> DeltaMemConfig:
    """The settings of the model's adapter."""
    return next(iter(memory_layers(model).values())).memory_config


@lru_cache
def _model_class(base: type[nn.Module]) -> type[DeltaMemModel]:
    return type(f"DeltaMem{base.__name__}", (DeltaMemModel, base), {"base_class": base})


def _at(caches: list, path: CachePath) -> object:
    for i in path:
        caches = (caches.caches if isinstance(caches, CacheList) else caches)[i]
    return caches


def _replaced(caches: list, path: CachePath, new: object) -> list:
    i, *rest = path
    caches = list(caches)
    caches[i] = CacheList(*_replaced(caches[i].caches, tuple(rest), new)) if rest else new
    return caches
