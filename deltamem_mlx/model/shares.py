"""The rows of a projection that one of several processes has, under tensor parallelism.

mlx-lm deals the heads out to the processes, so that each has rows of q, k and v that follow each
other, and the output projection adds up what all of them give. Where there are fewer heads than
processes, some have the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.nn.layers.distributed import sum_gradients

from ..ranks import Ranks

_DEALT_OUT = (nn.AllToShardedLinear, nn.QuantizedAllToShardedLinear)
_SUMMED = (nn.ShardedToAllLinear, nn.QuantizedShardedToAllLinear)


@dataclass(frozen=True)
class Share:
    """Which of all rows a process has.

    Args:
        rank (int): The process.
        size (int): How many there are.
        copies (int): How many have the same rows.
    """

    rank: int
    size: int
    copies: int = 1

    @property
    def parts(self) -> int:
        """How many different parts there are."""
        return self.size // self.copies

    def of(self, whole: mx.array) -> mx.array:
        """This process's rows of all of them, [rows, ...]."""
        rows = whole.shape[0] // self.parts
        start = self.rank // self.copies * rows
        return whole[start : start + rows]


def group_of(projection: nn.Module) -> mx.distributed.Group | None:
    """The processes that a projection's rows are dealt out to; None: all of them are here."""
    projection = _bare(projection)
    group = projection.group if isinstance(projection, _DEALT_OUT) else None
    return None if group is None or group.size() == 1 else group


def _bare(projection: nn.Module) -> nn.Module:
    """A projection without the LoRA on it."""
    return projection.linear if "linear" in projection else projection


def tensor_ranks(model: nn.Module) -> Ranks:
    """The processes that a model's projections are dealt out to."""
    for module in model.modules():
        if isinstance(module, _DEALT_OUT + _SUMMED):
            return Ranks(module.group)
    return Ranks()


def share_of(projection: nn.Module, everyone: Sequence[bytes]) -> Share | None:
    """The share of a projection's rows that is here; ``None``: all of them.

    Args:
        projection (nn.Module): Of this process.
        everyone (Sequence[bytes]): What ``first_row`` gives in each process.
    """
    if (group := group_of(projection)) is None:
        return None
    return Share(group.rank(), group.size(), group.size() // len(set(everyone)))


def first_row(projection: nn.Module) -> bytes:
    """What tells whether two processes have the same rows."""
    projection = _bare(projection)
    names = [name for name in ("weight", "scales", "biases", "bias") if name in projection]
    rows = [projection[name][:1] for name in names]
    return b"".join(np.array(row.view(mx.uint8)).tobytes() for row in rows)


def whole_columns(
    weight: mx.array, projection: nn.Module, most: int, share: Share | None
) -> mx.array:
    """The first columns of a weight, all rows of them, wherever they lie: float32 [out, most].

    Args:
        weight (mx.array): [rows, columns], what this process has of it.
        projection (nn.Module): What has this weight.
        most (int): How many columns, where there are so many.
        share (Share): Of the rows.
    """
    columns, projection = weight[:, :most].astype(mx.float32), _bare(projection)
    if share is not None:
        everyone = Ranks(projection.group).gather(columns)
        return mx.concatenate(everyone[:: share.copies])
    if isinstance(projection, _SUMMED):
        return mx.concatenate(Ranks(projection.group).gather(columns), axis=1)[:, :most]
    return columns


def rows_here(whole: mx.array, projection: nn.Module, share: Share | None) -> mx.array:
    """This process's rows of a correction's weight; its gradient is that of all rows."""
    return whole if share is None else share.of(with_gradients_of_all(whole, projection))


def with_gradients_of_all(x: mx.array, projection: nn.Module) -> mx.array:
    """The same array, whose gradient is the sum of what a projection's processes have for it."""
    group = group_of(projection)
    return x if group is None else sum_gradients(group)(x)
