"""The parameters that an adapter has in a layer: their names and shapes."""

from typing import cast

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from ..config import HEADS, DeltaMemConfig
from .projections import Projections

PARAMETERS = (
    *("memory_q_proj", "memory_k_proj", "memory_v_proj"),
    *("beta_proj", "beta_bias", "lambda_proj", "lambda_bias"),
    *(f"delta_{head}_proj" for head in HEADS),
    *("delta_scale_raw", "delta_o_rmsnorm_weight"),
)


def adapter_shapes(projections: Projections, config: DeltaMemConfig) -> dict[str, list[int]]:
    """Shapes of the parameters that an adapter has in one layer, heads that are off included.

    Heads that the attention has no projection for are left out.
    """
    D, M, G = projections.dims, config.read_width, config.gate_width
    shapes = {f"memory_{name}_proj": [M, D] for name in "qkv"}
    shapes |= {"beta_proj": [G, D], "beta_bias": [G]}
    if not config.couple_lambda:
        shapes |= {"lambda_proj": [G, D], "lambda_bias": [G]}
    shapes |= {f"delta_{head}_proj": [width, M] for head, width in projections.widths}
    if config.trainable_delta_scale:
        per_head = config.delta_scale_granularity == "head"
        shapes["delta_scale_raw"] = [len(HEADS) if per_head else 1]
    if config.delta_o_rmsnorm:
        shapes["delta_o_rmsnorm_weight"] = [projections.width("o")]
    return shapes


def flat_arrays(tree: object) -> list[tuple[str, mx.array]]:
    """Names and arrays of a module or another tree: ``tree_flatten``, whose stub says less."""
    found = cast(list[tuple[str, object]], tree_flatten(tree))
    return [(name, value) for name, value in found if isinstance(value, mx.array)]


def named_arrays(tree: object) -> dict[str, mx.array]:
    """The same as a dict, in the tree's order."""
    return dict(flat_arrays(tree))


def numbers(x: mx.array) -> list[float]:
    """The values of an array [N]; the stub of ``tolist`` says less."""
    return [float(value) for value in np.array(x.astype(mx.float32))]


def scalar(x: mx.array) -> float:
    """The value of an array of one; the stub of ``item`` allows for complex numbers."""
    return float(np.array(x.astype(mx.float32)))
