"""What a patched model does beside mlx-lm's forward: prompt caches with memories, parameters."""

import sys
import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache

from ..compat import BaseCache, trains_layers, wanted_max_kv_size, writes_model
from .attention import DeltaMemAttention
from .cache_parts import part_at, put_part
from .layer_cache import DeltaMemCache
from .parameters import PARAMETERS, flat_arrays
from .stand_in import counted, put_stand_in


class DeltaMemModel(nn.Module):
    """Mixin over an mlx-lm model: its prompt cache holds a memory per patched layer."""

    base_class: type[nn.Module]

    def make_cache(self, max_kv_size: int | None = None) -> list[BaseCache]:
        """A prompt cache whose patched layers have a memory beside their KV cache.

        ``make_prompt_cache`` asks a model that has this method without passing its
        ``max_kv_size`` on, so it is read from there.
        """
        if max_kv_size is None:
            max_kv_size = wanted_max_kv_size(sys._getframe(1))
        caches = list(_base_caches(self, super(), max_kv_size))
        for path, attentions in self._memory_attached.paths.items():
            kv = part_at(caches, path)
            put_part(caches, path, DeltaMemCache(kv, *(a.new_memory() for a in attentions)))
        put_stand_in(caches, self._memory_attached.mark)
        return caches

    def parameters(self) -> dict[str, Any]:
        """All parameters; without the memory's where mlx-lm writes the model as its own."""
        if not writes_model(sys._getframe(1)):
            return chosen(self, self.valid_parameter_filter)
        warnings.warn(
            "The model is written without its memory, which no model file can hold. Save that "
            "with dm.save_adapter(model, FOLDER).",
            stacklevel=3,
        )
        return chosen(self, self.valid_parameter_filter, memories=False)

    def trainable_parameters(self) -> dict[str, Any]:
        """What is trainable; without the memory's where mlx-lm trains layers of its own as well."""
        if trains_layers(sys._getframe(1)):
            others = chosen(self, self.trainable_parameter_filter, memories=False)
            if flat_arrays(others):
                warnings.warn(
                    "mlx-lm writes the layers that it trains without the memory, which is "
                    "trainable as well. Save that with dm.save_adapter(model, FOLDER).",
                    stacklevel=3,
                )
                return others
        return chosen(self, self.trainable_parameter_filter)


def chosen(
    model: nn.Module, wanted: Callable[[nn.Module, str, Any], bool], *, memories: bool = True
) -> dict[str, Any]:
    """The parameters of a model that ``wanted`` passes, those of memories only if wished."""

    def keep(module: nn.Module, name: str, value: Any) -> bool:
        of_memory = isinstance(module, DeltaMemAttention) and name in PARAMETERS
        return (memories or not of_memory) and wanted(module, name, value)

    found: dict[str, Any] = model.filter_and_map(keep)
    return found


class SelfCachingModel(DeltaMemModel):
    """The same over a model that makes itself a prompt cache where it is called without one."""

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:  # as the base class has them
        if len(args) < 2 and kwargs.get("cache") is None:
            kwargs["cache"] = self.make_cache()
        logits: mx.array = self.base_class.__call__(self, *args, **kwargs)
        return logits


class StandInModel(DeltaMemModel):
    """The same over layers of a pipeline that have no memory: the plain forward, and counts."""

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:  # as the base class has them
        cache = kwargs["cache"] if "cache" in kwargs else args[1] if len(args) > 1 else None
        if cache is not None:
            tokens = args[0] if args else kwargs["inputs"]
            plain = counted(cache, tokens.shape, self._memory_attached.mark)
            if "cache" in kwargs:
                kwargs["cache"] = plain
            else:
                args = (args[0], plain, *args[2:])
        logits: mx.array = self.base_class.__call__(self, *args, **kwargs)
        return logits


def _base_caches(model: nn.Module, base: object, max_kv_size: int | None) -> list[BaseCache]:
    """The caches that mlx-lm would make for the model without a memory."""
    make: Callable[[], list[BaseCache]] | None = getattr(base, "make_cache", None)
    if make is not None:
        return make()
    if max_kv_size is None:
        return [KVCache() for _ in model.layers]
    return [RotatingKVCache(max_size=max_kv_size, keep=4) for _ in model.layers]
