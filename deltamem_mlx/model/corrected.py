"""A projection as an attention with a memory calls it."""

from collections.abc import Sequence
from itertools import accumulate

import mlx.core as mx
import mlx.nn as nn

from ..ops.seams import split


class Corrected:
    """A projection with a correction added to its output.

    Args:
        projection (nn.Module): The base projection.
        reads (mx.array): [1, B·T, r·H], in the dtype of ``weight``.
        weight (mx.array): [1, r·H, out].
        norm (tuple[mx.array, float]): Weight and epsilon of an RMS norm on the correction.
    """

    def __init__(
        self,
        projection: nn.Module,
        reads: mx.array,
        weight: mx.array,
        norm: tuple[mx.array, float] | None = None,
    ):
        self.projection, self.reads, self.weight, self.norm = projection, reads, weight, norm

    def __call__(self, x: mx.array) -> mx.array | list[mx.array]:
        y: mx.array | Sequence[mx.array] = self.projection(x)
        if not isinstance(y, mx.array):
            cuts = list(accumulate(part.shape[-1] for part in y))[:-1]
            return split(self._corrected(mx.concatenate([*y], axis=-1)), cuts, axis=-1)
        return self._corrected(y)

    def _corrected(self, y: mx.array) -> mx.array:
        shape = y.shape
        if len(shape) != 3 or shape[0] != 1:
            # One product for the batch: one for each conversation is several times slower.
            return self._corrected(y.reshape(1, -1, shape[-1])).reshape(shape)
        if self.norm is None:
            return mx.addmm(y, self.reads.astype(y.dtype), self.weight.astype(y.dtype))
        delta = mx.fast.rms_norm(self.reads @ self.weight, *self.norm)
        return y + delta.astype(y.dtype)

    def __getattr__(self, name: str) -> object:
        return getattr(self.projection, name)
