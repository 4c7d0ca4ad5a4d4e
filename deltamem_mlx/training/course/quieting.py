"""Least squares that make a memory keep quiet on ordinary text: it neither writes nor reads there.

An adapter trained on facts alone has never seen anything else: on plain text its write gates stand
open and its queries find what is not meant. Both are corrected, layer by layer: as they are where
facts are told and asked for; closed, and pointing where no key is, elsewhere. Training smooths it.
"""

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...model.patch import memory_layers
from .fitting import ELSEWHERE, Weights, ridge

CLOSED, AWAY = -5.0, 1.5  # logits of gates, and entries of queries that no key has
_CHANGED = ("beta_proj", "beta_bias", "memory_q_proj")


def change(keep: np.ndarray, quiet: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """What to add to weights [D, n] so that outputs at ``quiet`` change by ``wanted`` [N, n].

    Those at ``keep`` shall stay as they are, and count as much.
    """
    share = len(keep) / len(quiet)
    gram = ridge(keep, 1e-3) + share * ridge(quiet, 1e-3)
    added: np.ndarray = np.linalg.solve(gram, share * quiet.T @ wanted)
    return added


def corrected(weights: Weights, keep: np.ndarray, quiet: np.ndarray) -> Weights:
    """The gate and the query of one layer, from attention inputs [N, D] of both kinds."""
    logits = quiet @ weights["beta_proj"].T + weights["beta_bias"]
    gate = change(keep, quiet, np.minimum(CLOSED - logits, 0))
    query = quiet @ weights["memory_q_proj"].T
    away = np.zeros_like(query)
    away[:, len(weights["memory_q_proj"]) - ELSEWHERE :] = AWAY
    return {
        "beta_proj": weights["beta_proj"] + gate.T,
        "memory_q_proj": weights["memory_q_proj"] + change(keep, quiet, away - query).T,
    }


def quieted(model: nn.Module, layer: int, keep: np.ndarray, quiet: np.ndarray) -> None:
    """Correct one layer of a model with an adapter, in place."""
    attention = memory_layers(model)[layer]
    weights = {name: np.array(attention[name].astype(mx.float32)) for name in _CHANGED}
    for name, value in corrected(weights, keep, quiet).items():
        attention[name] = mx.array(value, mx.float32)
