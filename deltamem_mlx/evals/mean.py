"""The mean of many memories: what they have in common, whatever was told."""

from collections.abc import Iterable, Sequence

import mlx.core as mx
import numpy as np

from .runner import State

Totals = dict[int, np.ndarray]  # layer index -> float64 [1, H, r, r]: a sum of memories


def totals(states: Iterable[State]) -> Totals:
    """The sum of memories; in float64, so that some can be taken out of it again."""
    found: Totals = {}
    for state in states:
        for layer, memory in state.items():
            exact = np.array(memory, np.float64)
            found[layer] = found[layer] + exact if layer in found else exact
    return found


def mean_without(of: Totals, left_out: Sequence[State], others: int) -> State:
    """The mean of the memories in a sum but some.

    Args:
        of (Totals): The sum.
        left_out (Sequence[State]): The memories that are taken out.
        others (int): How many are left, at least one.
    """
    means: dict[int, mx.array] = {}
    for layer, total in of.items():
        for state in left_out:
            total = total - np.array(state[layer], np.float64)
        means[layer] = mx.array(total / others, mx.float32)
    return means
