"""Where a model lies that mlx-lm has spread over several processes, and what this one has of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import CacheList, make_prompt_cache
from mlx_lm.models.pipeline import PipelineMixin

from ..ranks import Ranks
from .shares import tensor_ranks

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Which processes have a model, and which of its layers this one has.

    Args:
        ranks (Ranks): The processes.
        pipelined (bool): Each has some of the layers, rather than a part of every layer.
        first (int): This process's first layer, counted through the whole model.
        layers (int): Those of the whole model.
        memories (tuple[tuple[int, ...], ...]): The layers with a memory in each process.
        reach (float): In a pipeline, how long a context may get whose end can still be cut in all
            processes: a layer elsewhere may have a window, or keys that are never cut.
    """

    ranks: Ranks = field(default_factory=Ranks)
    pipelined: bool = False
    first: int = 0
    layers: int = 0
    memories: tuple[tuple[int, ...], ...] = ()
    reach: float = math.inf

    @property
    def all_memories(self) -> list[int]:
        """All layers that have a memory."""
        return sorted({layer for layers in self.memories for layer in layers})

    @property
    def mine(self) -> tuple[int, ...]:
        """The layers with a memory in this process; in a pipeline there may be none."""
        return self.memories[self.ranks.rank]

    @property
    def kept(self) -> tuple[int, ...]:
        """The layers whose memories a prompt cache here has: one at least, if by a stand-in."""
        return self.mine or tuple(self.all_memories[:1])

    def by_layer(self, here: dict[int, T]) -> dict[int, T]:
        """What all processes have for their layers, in order of the layers; no stand-ins."""
        if not self.pipelined:
            return dict(sorted(here.items()))
        everyone = self.ranks.gather({i: here[i] for i in self.mine if i in here})
        found = {layer: value for part in everyone for layer, value in part.items()}
        return dict(sorted(found.items()))


def reach_of(cache: Sequence[Any]) -> float:
    """How many tokens a new, plain prompt cache may take and still be cut at its end.

    0: it can never be; a full window cannot.
    """
    found = math.inf
    for part in cache:
        if isinstance(part, CacheList):
            reach = reach_of(part.caches)
        else:
            reach = getattr(part, "max_size", math.inf) if part.is_trimmable() else 0
        found = min(found, reach)
    return found


def spread_of(model: nn.Module) -> Spread:
    """How mlx-lm has spread a model: by its ``shard``, its ``pipeline``, or not at all."""
    layers = len(model.layers)
    for module in model.modules():
        if isinstance(module, PipelineMixin) and module.pipeline_size > 1:
            ranks = Ranks(mx.distributed.init())
            own = module.start_idx + layers, reach_of(make_prompt_cache(model))
            ends, reaches = zip(*ranks.gather(own), strict=True)
            return Spread(ranks, True, module.start_idx, max(ends), reach=min(reaches))
    return Spread(tensor_ranks(model), layers=layers)
