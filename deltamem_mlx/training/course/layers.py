"""Which layers of a model can have a course's memory, and the adapter's settings."""

from collections.abc import Sequence

import mlx.nn as nn

from ...config import DeltaMemConfig
from ...model.sites import choose

RANK = 32
LOWEST = 1 / 3  # of the layers have none: from there more is lost on the way up


def config_for(layers: Sequence[int], rank: int = RANK) -> DeltaMemConfig:
    """The settings of a course's adapter."""
    return DeltaMemConfig(
        rank=rank,
        alpha=rank,
        delta_heads=("o",),
        state_update_mode="no_lambda",
        rankwise_gates=False,
        target_layers=tuple(layers),
    )


def attentions(model: nn.Module) -> dict[int, nn.Module]:
    """Layer → the attention that can have a memory, of a model without one."""
    sites = choose(model, config_for(())).sites
    return {site.layer: site.attention for site in sites if site.attention is not None}


def width_of(model: nn.Module) -> int:
    """The size of a hidden state."""
    return choose(model, config_for(())).sites[0].projections.dims


def able_layers(model: nn.Module) -> list[int]:
    """The layers that can have a memory, without the lowest."""
    layers = list(attentions(model))
    return layers[round(LOWEST * len(layers)) :] if len(layers) > 2 else layers


def upper(model: nn.Module, share: float) -> tuple[int, ...]:
    """A share of the layers that can have a memory, from the top."""
    layers = list(attentions(model))
    return tuple(layers[len(layers) - max(1, round(share * len(layers))) :])
