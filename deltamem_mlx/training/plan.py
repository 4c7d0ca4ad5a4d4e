"""What a run will do, in numbers, before it does it."""

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.utils import get_total_parameters

from ..model.parameters import named_arrays
from ..model.patch import memory_layers
from .dataset import DatasetReport
from .settings import TrainSettings
from .update import adapter_params


@dataclass(frozen=True)
class TrainingPlan:
    """A run in numbers.

    Attributes:
        trained, total (int): Parameters that are trained, and those of the model without them.
        patched, layers (int): Layers with a memory, and all layers.
        tokens (int): Tokens an epoch, of both passes.
        epochs (float): How often the run sees every episode.
        memory (int): Bytes that the run will take at most, roughly.
    """

    trained: int
    total: int
    patched: int
    layers: int
    tokens: int
    epochs: float
    memory: int


def plan_of(
    model: nn.Module, report: DatasetReport, settings: TrainSettings, world_size: int = 1
) -> TrainingPlan:
    """The plan of a run of ``model`` over the dataset that was reported on."""
    trained = sum(array.size for array in named_arrays(adapter_params(model)).values())
    iterations = settings.updates * settings.grad_accumulation_steps
    return TrainingPlan(
        trained=trained,
        total=get_total_parameters(model),
        patched=len(memory_layers(model)),
        layers=len(model.layers),
        tokens=report.write_tokens + report.read_tokens,
        epochs=iterations * settings.batch_size / max(1, report.episodes),
        memory=_memory(model, report, settings, world_size),
    )


def _memory(
    model: nn.Module, report: DatasetReport, settings: TrainSettings, world_size: int
) -> int:
    """Weights, and what a step over the longest episodes keeps for its backward pass.

    Counted for plain attention with a dense feed-forward part; good to a factor of two.
    """
    weights = sum(array.nbytes for array in named_arrays(model.parameters()).values())
    attention = next(iter(memory_layers(model).values()))
    rows = max(1, settings.batch_size // world_size)
    write = min(report.longest_write, report.settings.max_write_length)
    read = min(report.longest_read, report.settings.max_length)
    dims, spec = attention.memory_projections.dims, attention.memory_spec
    q_width = attention.memory_projections.width("q")
    block = next(b for b in model.layers if any(m is attention for m in b.modules()))
    inner = max(_widths(block), default=4 * dims)
    size = 4 if _dtype(model) == mx.float32 else 2
    kept = size * (5 * dims + 3 * q_width + 3 * inner) + 4 * 10 * spec.packed_width
    heads = next(
        (getattr(attention, n) for n in ("n_heads", "num_heads") if hasattr(attention, n)), 16
    )
    scores = size * heads * rows * (write**2 + read**2)
    layer = rows * (write + read) * kept + scores
    layers = len(model.layers)
    if settings.grad_checkpoint:
        activations = layer + layers * rows * (write + read) * dims * size
    else:
        activations = layers * layer
    vocabulary = max(_widths(model), default=0)
    labelled = rows * report.supervised_tokens / max(1, report.episodes)
    return int(weights + activations + 6 * 4 * labelled * vocabulary)


def _widths(module: nn.Module) -> list[int]:
    """Output widths of the matrices in a module."""
    return [a.shape[0] for a in named_arrays(module.parameters()).values() if a.ndim == 2]


def _dtype(model: nn.Module) -> mx.Dtype:
    arrays = named_arrays(model.parameters())
    return next(a.dtype for a in arrays.values() if mx.issubdtype(a.dtype, mx.floating))
