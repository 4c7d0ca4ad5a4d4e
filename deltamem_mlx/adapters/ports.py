"""Adapters that other ports of δ-mem trained, whose models lay their projections out otherwise."""

from collections.abc import Mapping, Sequence

import mlx.core as mx

from ..model.found import Site
from ..model.patch import prefix_of


def with_gates(tensors: Mapping[str, mx.array], sites: Sequence[Site]) -> dict[str, mx.array]:
    """``tensors`` with corrections of q brought to the rows of this model's projection.

    Where the q projection makes an output gate as well, a port that keeps the two apart corrects
    the queries alone. Its rows go where those are, and zeros, which correct nothing, between.

    Args:
        tensors (Mapping[str, mx.array]): The adapter's.
        sites (Sequence[Site]): Where they go.
    """
    new = dict(tensors)
    for site in sites:
        name, projections = f"{prefix_of(site.layer)}delta_q_proj", site.projections.whole
        rows = new[name].shape[0] if name in new else 0
        if projections.gated and 2 * rows == projections.width("q"):
            new[name] = projections.with_gate(new[name])
    return new
