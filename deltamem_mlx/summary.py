"""Numbers that say how full a memory is."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np


def summarize(states: Mapping[int, mx.array]) -> dict[int, dict[str, float]]:
    """Layer index → the norm and the effective rank of its states [B, H, r, r].

    The effective rank is the exponential of the entropy of the singular values, from 1 for one
    association to r for r of equal strength; the mean over conversations and state heads.
    """
    return {layer: _summary(np.array(state, np.float64)) for layer, state in states.items()}


def _summary(state: np.ndarray) -> dict[str, float]:
    singular = np.linalg.svd(state, compute_uv=False)
    total = singular.sum(axis=-1, keepdims=True)
    share = np.divide(singular, total, out=np.zeros_like(singular), where=total > 0)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)
    rank = np.where(total[..., 0] > 0, np.exp(entropy), 0)
    return {"norm": float(np.linalg.norm(state)), "effective_rank": float(rank.mean())}
