"""Measures of states: how much they hold, how far apart they are, how fast gates forget.

Functions of numbers alone: neither a model nor MLX is needed.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

States = Mapping[int, ArrayLike]


@dataclass(frozen=True)
class LayerMeasures:
    """How much the states of one layer hold.

    Args:
        layer (int): Index of the layer.
        norm (float): Frobenius norm over all state heads.
        effective_rank (float): Mean over state heads, see ``effective_rank``.
        largest (float): Largest singular value of any state head.
    """

    layer: int
    norm: float
    effective_rank: float
    largest: float


@dataclass(frozen=True)
class LayerDistance:
    """How far apart two memories are in one layer.

    Args:
        layer (int): Index of the layer.
        cosine (float): See ``cosine``.
        change (float): See ``change``.
    """

    layer: int
    cosine: float
    change: float


def layer_measures(states: States) -> list[LayerMeasures]:
    """The measures of every layer, in order; means over conversations.

    Args:
        states (Mapping[int, ArrayLike]): Layer index → [B, H, r, r], as ``dm.memory_state`` has it.
    """
    found = []
    for layer in sorted(states):
        state = np.asarray(states[layer], np.float64)
        singular = np.linalg.svd(state, compute_uv=False)
        norm = np.sqrt((singular**2).sum(axis=(-1, -2))).mean()
        rank = _effective_rank(singular).mean()
        largest = singular.max(axis=(-1, -2)).mean()
        found.append(LayerMeasures(layer, float(norm), float(rank), float(largest)))
    return found


def effective_rank(state: ArrayLike) -> np.ndarray:
    """How many directions a state uses: exp of the entropy of its singular values.

    From 1, where all was written under one key, to r, where all directions are equally strong; 0
    for an empty state. (Roy and Vetterli, 2007.)

    Args:
        state (ArrayLike): [..., r, r].

    Returns:
        np.ndarray: [...].
    """
    return _effective_rank(np.linalg.svd(np.asarray(state, np.float64), compute_uv=False))


def _effective_rank(singular: np.ndarray) -> np.ndarray:
    total = singular.sum(axis=-1, keepdims=True)
    share = np.divide(singular, total, out=np.zeros_like(singular), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1.0))).sum(axis=-1)
    return np.where(total[..., 0] > 0, np.exp(entropy), 0.0)


def cosine(a: ArrayLike, b: ArrayLike) -> float:
    """Cosine similarity of two states of one shape; 0 where one is empty."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / norms, -1, 1)) if norms > 0 else 0.0


def change(a: ArrayLike, b: ArrayLike) -> float:
    """Relative change between two states of one shape: ‖a − b‖ over the larger of their norms.

    0: the same; 1: one is empty; 2: one is the other's opposite.
    """
    a, b = (np.asarray(x, np.float64).ravel() for x in (a, b))
    larger = max(np.linalg.norm(a), np.linalg.norm(b))
    return float(np.linalg.norm(a - b) / larger) if larger > 0 else 0.0


def distances(a: States, b: States) -> list[LayerDistance]:
    """How far apart two memories are, layer by layer.

    Raises:
        ValueError: If their layers or shapes differ; all of them are listed.
    """
    problems = [f"layer {i}: only in one of them" for i in sorted(set(a) ^ set(b))]
    problems += [
        f"layer {i}: shape {list(np.shape(a[i]))} and {list(np.shape(b[i]))}"
        for i in sorted(set(a) & set(b))
        if np.shape(a[i]) != np.shape(b[i])
    ]
    if problems:
        lines = "\n  ".join(problems)
        raise ValueError(
            f"The memories differ in shape:\n  {lines}\nCompare memories of one adapter."
        )
    return [LayerDistance(i, cosine(a[i], b[i]), change(a[i], b[i])) for i in sorted(a)]


def similarities(states: ArrayLike) -> np.ndarray:
    """Cosine similarity of every state to every other, the mean over layers.

    Args:
        states (ArrayLike): [P, L, N], P states of L layers with N numbers each.

    Returns:
        np.ndarray: [P, P].
    """
    states = np.asarray(states, np.float64)
    norms = np.linalg.norm(states, axis=-1, keepdims=True)
    unit = np.divide(states, norms, out=np.zeros_like(states), where=norms > 0)
    cosines: np.ndarray = np.clip(np.einsum("pln,qln->pq", unit, unit) / states.shape[1], -1, 1)
    return cosines


def share_left(before: np.ndarray, after: np.ndarray, now: np.ndarray) -> float:
    """The share of the step from ``before`` to ``after`` that the way from there to ``now`` has.

    1: all of it, 0: none; more where it was told again, less than 0 where the opposite was.
    """
    step = (after - before).ravel()
    size = float(step @ step)
    return float((now - before).ravel() @ step) / size if size else 0.0


def survivals(log_keep: ArrayLike) -> np.ndarray:
    """Share of a state that keep gates let through between any two points, the mean over rows.

    What erasing takes beyond that is not in it.

    Args:
        log_keep (ArrayLike): [P, N], the sum of log keep of N rows up to each of P points.

    Returns:
        np.ndarray: [P, P]; entry (p, q) for p ≤ q, 0 below the diagonal.
    """
    log_keep = np.asarray(log_keep, np.float64)
    shares = np.zeros((len(log_keep),) * 2)
    for p in range(len(log_keep)):
        shares[p, p:] = np.exp(log_keep[p:] - log_keep[p]).mean(axis=-1)
    return shares


def half_life(keep: ArrayLike) -> np.ndarray:
    """Tokens after which a keep gate, held at its value, has halved what stood; inf at 1."""
    keep = np.clip(np.asarray(keep, np.float64), 0.0, 1.0)
    with np.errstate(divide="ignore"):
        return np.where(keep < 1, np.log(0.5) / np.log(np.minimum(keep, 1 - 1e-16)), np.inf)
