"""Own memory against another's: by how much more is to be lost with the memory of another.

The cross-entropy alone is content where any memory brings the form of a reply. Here each
conversation of a batch is read once more, with what its neighbour has written.
"""

from dataclasses import replace

import mlx.core as mx
import numpy as np

from .passes import PassMemory


def neighbours(count: int) -> np.ndarray:
    """Whose memory each of so many conversations gets, int32 [count]: two change places.

    A last one without another keeps its own. Not the next one's, around the batch: pairs stay
    together where processes share a batch.
    """
    places = np.arange(count) ^ 1
    return np.where(places < count, places, np.arange(count)).astype(np.int32)


def exchanged(written: dict[int, PassMemory]) -> dict[int, PassMemory]:
    """The memories of a write pass, by layer, each conversation with its neighbour's state."""
    return {layer: replace(memory, state=_exchanged(memory)) for layer, memory in written.items()}


def _exchanged(memory: PassMemory) -> mx.array | None:
    if memory.state is None:
        return None
    return memory.state[mx.array(neighbours(memory.state.shape[0]))]


def shortfall(
    own: mx.array,
    foreign: mx.array,
    weights: mx.array,
    owners: mx.array,
    wrote: mx.array,
    margin: float,
) -> mx.array:
    """How much is missing to the margin, summed over conversations as their labels weigh.

    Args:
        own, foreign (mx.array): float32 [N], cross-entropy of each label with the own memory, and
          with another's.
        weights (mx.array): float32 [N], what the labels count.
        owners (mx.array): int [N], whose each label is.
        wrote (mx.array): bool [B], the conversations that have a memory of their own.
        margin (float): Nats, by which the mean of ``foreign`` is to be above that of ``own``.

    Returns:
        mx.array: float32 scalar. A conversation without a neighbour, or that wrote nothing, adds 0.
    """
    count = wrote.shape[0]
    alone = mx.array(neighbours(count) == np.arange(count))
    each = mx.where(owners[None] == mx.arange(count)[:, None], weights[None], 0.0)  # [B, N]
    weighed = each.sum(axis=1)
    more = (each @ (foreign - own)) / mx.maximum(weighed, 1e-6)
    missing = mx.maximum(margin - more, 0) * weighed
    return mx.where(wrote & ~alone, missing, 0.0).sum()
