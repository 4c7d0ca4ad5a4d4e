"""Where a model lies that mlx-lm has spread over several processes, and what this one has of it."""

from dataclasses import dataclass, field
from typing import TypeVar

import mlx.core as mx
import mlx.nn as nn
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
    """

    ranks: Ranks = field(default_factory=Ranks)
    pipelined: bool = False
    first: int = 0
    layers: int = 0
    memories: tuple[tuple[int, ...], ...] = ()

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


def spread_of(model: nn.Module) -> Spread:
    """How mlx-lm has spread a model: by its ``shard``, its ``pipeline``, or not at all."""
    layers = len(model.layers)
    for module in model.modules():
        if isinstance(module, PipelineMixin) and module.pipeline_size > 1:
            ranks = Ranks(mx.distributed.init())
            ends = ranks.gather(module.start_idx + layers)
            return Spread(ranks, True, module.start_idx, max(ends))
    return Spread(tensor_ranks(model), layers=layers)
