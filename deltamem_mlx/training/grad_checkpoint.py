"""Gradient checkpointing of layers that keeps the gradient through the memory.

mlx-lm's own takes what is inside a cache for a constant, which cuts the gradient between a write
pass and a read pass without a word. Here the states are inputs and outputs of the layer.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from ..compat import BaseCache
from .passes import Carried, fork_cache, pass_caches

T = TypeVar("T")


@contextmanager
def checkpointed(model: nn.Module) -> Iterator[nn.Module]:
    """Within this context the layers' activations are computed again in the backward pass.

    Meant for the passes of `passes.Passes`. The layers get a subclass of their own class, and
    their class back at the end, so other models are not touched.

    Args:
        model (nn.Module): A model of mlx-lm, with an adapter.
    """
    classes: list[type[nn.Module]] = [type(layer) for layer in model.layers]
    try:
        for layer, base in zip(model.layers, classes, strict=True):
            layer.__class__ = _checkpointed_class(base)
        yield model
    finally:
        for layer, base in zip(model.layers, classes, strict=True):
            layer.__class__ = base


@lru_cache
def _checkpointed_class(base: type[nn.Module]) -> type[nn.Module]:
    def call(self: nn.Module, *args: object, **kwargs: object) -> object:
        return _call(self, base, args, kwargs)

    return type(f"Checkpointed{base.__name__}", (base,), {"__call__": call})


def _call(
    layer: nn.Module, base: type[nn.Module], args: tuple[object, ...], kwargs: dict[str, Any]
) -> object:
    """Run a layer so that its backward pass runs it again.

    All that a gradient may flow through is an argument of ``run``: parameters, states, and the
    arrays among the layer's own arguments. The second run has to find the caches as the first
    did, so each run works on forks.
    """
    caches = [a for a in (*args, *kwargs.values()) if isinstance(a, BaseCache)]
    parts = [part for cache in caches for part in pass_caches(cache)]

    def run(params: dict, carried: list[Carried], args: tuple, kwargs: dict) -> tuple:
        before = layer.trainable_parameters()
        left = iter(carried)
        forks = {id(cache): fork_cache(cache, left) for cache in caches}
        try:
            layer.update(params)
            y = base.__call__(layer, *_swap(args, forks), **_swap(kwargs, forks))
        finally:
            layer.update(before)
        return y, [part.carried for fork in forks.values() for part in pass_caches(fork)]

    before = [part.carried for part in parts]
    y, after = mx.checkpoint(run)(layer.trainable_parameters(), before, args, kwargs)
    for part, carried in zip(parts, after, strict=True):
        part.carried = Carried(*carried)
    return y


def _swap(values: T, forks: Mapping[int, object]) -> T:
    swapped: T = tree_map(lambda value: forks.get(id(value), value), values)
    return swapped
