"""Words as directions in which a model's last hidden states say them."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..head import find_heads
from .layers import width_of

NORMS = ("norm", "final_layernorm", "ln_f", "norm_f", "final_norm")
CHUNK = 64  # rows that go through a head at once: of a large vocabulary each is long


class Directions:
    """Coordinates of words in which all differences are equally likely to matter.

    Args:
        rows (np.ndarray): float32 [words, D], from `head_rows`.
        spoken (int): The first so many are words whose differences count.

    Attributes:
        spread (np.ndarray): [D, D], takes rows of the head to coordinates, and back to the
          residual.
        axes (np.ndarray): [D, D], directions among the coordinates; those that tell most of the
          words apart come first.
        coordinates (np.ndarray): [words, D].
    """

    def __init__(self, rows: np.ndarray, spoken: int):
        rows = rows - rows[:spoken].mean(0)
        sizes, axes = np.linalg.eigh(np.cov(rows[:spoken].T))
        sizes = np.maximum(sizes, 0)
        self.spread = (axes / np.sqrt(sizes + 0.05 * sizes.mean())) @ axes.T
        self.axes = axes[:, ::-1].T
        self.coordinates = rows @ self.spread

    def own_axes(self, place: int, layers: int, count: int) -> np.ndarray:
        """The axes [count, D] of one of some layers: each has others, as far as there are any."""
        return self.axes[(place + layers * np.arange(count)) % len(self.axes)]


def head_rows(model: nn.Module, tokens: Sequence[int]) -> np.ndarray:
    """How the logits of some tokens depend on the last hidden state, behind the final norm.

    The head may be a layer or the embedding, quantized or not; the final norm's weights, whatever
    is added to them, count as the head's.

    Args:
        model (nn.Module): The model.
        tokens (Sequence[int]): Ids.

    Returns:
        np.ndarray: float32 [tokens, D].

    Raises:
        ValueError: If the model has no head that is known.
    """
    width, modules = width_of(model), dict(model.named_modules())
    found = [modules[path] for path in find_heads(model)]
    layers = [m for m in found if not hasattr(m, "as_linear")]
    tied = [m for m in found if hasattr(m, "as_linear") and m(mx.array([0])).shape[-1] == width]
    ids = mx.array(list(tokens), mx.int32)
    if layers:
        rows = _rows_of_layer(layers[0], ids, width)
    elif tied:
        rows = np.array(tied[0](ids).astype(mx.float32))
    else:
        raise ValueError("The model's head was not found, so no start can be fitted.")
    norm = final_norm(model, width)
    return rows if norm is None else rows * scale_of(norm, width)


def _rows_of_layer(head: nn.Module, ids: mx.array, width: int) -> np.ndarray:
    parts = []
    bias = head(mx.zeros((1, width)))[:, ids].astype(mx.float32)
    for start in range(0, width, CHUNK):
        units = mx.eye(min(CHUNK, width - start), width, k=start)
        parts.append(np.array(head(units)[:, ids].astype(mx.float32) - bias))
    return np.concatenate(parts).T


def scale_of(norm: nn.Module, width: int) -> np.ndarray:
    """What a norm multiplies each entry by, [D]; some add one to their weights."""
    units = mx.eye(width) * width**0.5
    there = norm(units) - norm(mx.zeros((1, width)))
    return np.diagonal(np.array(there.astype(mx.float32))) / width**0.5


def final_norm(model: nn.Module, width: int) -> nn.Module | None:
    """The norm of hidden states before the head: the last one outside of the layers."""
    inside = {id(m) for layer in model.layers for m in layer.modules()}
    found = [
        (path.rpartition(".")[2], module)
        for path, module in model.named_modules()
        if "Norm" in type(module).__name__
        and id(module) not in inside
        and getattr(module, "weight", mx.zeros(0)).shape == (width,)
    ]
    named = [module for name, module in found if name in NORMS]
    return next(iter(named or [module for _, module in found[::-1]]), None)
