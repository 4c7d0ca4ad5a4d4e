"""The plain model and its patched twins: several objects, one set of base weights."""

import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..config import DeltaMemConfig
from ..model.parameters import flat_arrays
from ..model.patch import attach, config_of, detach

# What the three write strategies set (arXiv 2605.12357, section 3).
STRATEGIES: dict[str, dict[str, Any]] = {
    "TSW": {"memory_write_granularity": "token", "num_state_heads": 1},
    "MSW": {"memory_write_granularity": "token", "num_state_heads": 4},
    "SSW": {"memory_write_granularity": "message_mean", "num_state_heads": 1},
}

# The released adapter: rank 8, alpha 16, corrections on q and o.
RELEASED = DeltaMemConfig(delta_heads=("q", "o"))


@dataclass(frozen=True)
class Pair:
    """Models to time against each other.

    Args:
        plain (nn.Module): The model without a memory.
        patched (dict[str, nn.Module]): Strategy → the model with one. All share the plain
          model's weights.
    """

    plain: nn.Module
    patched: dict[str, nn.Module]


def twin(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same weight arrays."""
    return copy.deepcopy(model, {id(w): w for _, w in flat_arrays(model.parameters())})


def strategy_of(config: DeltaMemConfig) -> str:
    """The name of the strategy by which an adapter writes."""
    if config.memory_write_granularity != "token":
        return "SSW"
    return "TSW" if config.num_state_heads == 1 else "MSW"


def with_random_adapters(model: nn.Module, strategies: list[str], seed: int = 0) -> Pair:
    """The model and, for each strategy, a twin with an untrained adapter of released settings.

    Raises:
        ValueError: If a strategy is unknown, or the model cannot have a memory.
    """
    unknown = [name for name in strategies if name not in STRATEGIES]
    if unknown:
        raise ValueError(f"strategies: {', '.join(unknown)}: expected {', '.join(STRATEGIES)}.")
    patched = {}
    for name in dict.fromkeys(strategies):
        config = DeltaMemConfig.from_dict(RELEASED.to_dict() | dict(STRATEGIES[name]))
        patched[name] = _ready(attach(twin(model), config, seed=seed))
    return Pair(model, patched)


def with_plain_twin(patched: nn.Module) -> Pair:
    """A model with an adapter, and the same without."""
    return Pair(detach(twin(patched)), {strategy_of(config_of(patched)): _ready(patched)})


def _ready(model: nn.Module) -> nn.Module:
    """The model as it generates: weights packed once, nothing pending."""
    model.eval()
    mx.eval(model.parameters())
    return model
