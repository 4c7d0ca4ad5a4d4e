"""The first weights of one layer's memory, by least squares.

Gradients alone take long to find out how a word gets into a state and out of it. Here that comes
from conversations in which facts are told and, apart, asked for:

- write gate: open at the words of a value, closed at all others.
- key and query: canonical correlation between the hidden state at a value where it was told and the
  one before it in the answer; the directions in which they agree best.
- query, last entries: large unless a value comes next. No key has those entries, so elsewhere
  little is read.
- value: the word as directions of the head, each layer has its own; the correction of o adds them
  to the residual, so the word becomes more likely to be said.
"""

from collections.abc import Sequence

import numpy as np

from .directions import Directions
from .recording import ValuePair

ELSEWHERE = 4  # entries of a query that say that no value comes next
KEY, QUERY, READ_ELSEWHERE, GATE, OFFSET = 0.3, 0.12, 2.5, 12.0, 0.25

Weights = dict[str, np.ndarray]


class RecordedRows:
    """Rows of one part of a recording, centred; the few with huge entries are left out."""

    def __init__(self, rows: np.ndarray):
        self.mean = rows.mean(0)
        size = np.linalg.norm(rows - self.mean, axis=1)
        self.usual = size < 3 * np.median(size)
        self.raw = rows[self.usual]
        self.rows = self.raw - self.mean

    def whiten(self) -> np.ndarray:
        """What takes the rows to entries that vary alike."""
        sizes, axes = np.linalg.eigh(self.rows.T @ self.rows / len(self.rows))
        sizes = np.maximum(sizes, 0)
        whitened: np.ndarray = axes / np.sqrt(sizes + 1e-2 * sizes.mean())
        return whitened

    def without_mean(self) -> np.ndarray:
        """What takes the mean to 0 and changes rows least: projections have no bias to do it."""
        weights = np.linalg.solve(ridge(self.rows, 1e-3) / len(self.rows), self.mean)
        return np.eye(len(weights)) - np.outer(self.mean, weights) / (self.mean @ weights)


def ridge(rows: np.ndarray, share: float) -> np.ndarray:
    """The Gram matrix of rows, with a share of its mean added on the diagonal."""
    gram: np.ndarray = rows.T @ rows
    return gram + np.eye(len(gram)) * (share * np.trace(gram) / len(gram))


def strongest(matrix: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest singular values [count] of a matrix [D, D], and their vectors [D, count].

    By the eigenvectors of its Gram matrix, several times as fast as all of it: of what agrees well
    nothing is lost by the squares.
    """
    squares, right = np.linalg.eigh(matrix.T @ matrix)
    right = right[:, ::-1][:, :count]
    values = np.sqrt(np.maximum(squares[::-1][:count], 1e-12))
    return matrix @ right / values, values, right


def fit(
    inputs: np.ndarray,
    written: np.ndarray,
    pairs: Sequence[ValuePair],
    coordinates: np.ndarray,
    rank: int,
) -> Weights:
    """The weights of one layer but for the axes along which it says words.

    Args:
        inputs (np.ndarray): [N, D], what its attention got.
        written (np.ndarray): bool [N], true where facts were told.
        pairs (Sequence[ValuePair]): Where values were told, and asked for.
        coordinates (np.ndarray): [pairs, D], the values as `Directions.coordinates`.
        rank (int): Of the memory.

    Returns:
        dict[str, np.ndarray]: By parameter; ``word`` [D, D] takes what is told to coordinates.
    """
    told, before, _ = np.array(pairs).T
    telling, asking = RecordedRows(inputs[written]), RecordedRows(inputs[~written])
    values, askers = inputs[told] - telling.mean, inputs[before] - asking.mean

    to_key, to_query = telling.whiten(), asking.whiten()
    shared = rank - ELSEWHERE
    keys, agree, queries = strongest((values @ to_key).T @ (askers @ to_query) / len(pairs), shared)
    weight = np.sqrt(np.minimum(agree, 1))
    key = np.zeros((rank, inputs.shape[1]))
    query = np.zeros_like(key)
    key[:shared] = KEY * (to_key @ keys * weight).T @ telling.without_mean()
    query[:shared] = QUERY * (to_query @ queries * weight).T @ asking.without_mean()
    is_before = np.isin(np.flatnonzero(~written), before)[asking.usual]
    elsewhere = asking.raw.T @ (READ_ELSEWHERE * (0.6 - is_before))
    query[shared:] = np.linalg.solve(ridge(asking.raw, 1e-3), elsewhere)

    is_value = np.isin(np.flatnonzero(written), told)[telling.usual]
    centre = telling.raw.mean(0)
    raw = telling.raw - centre
    gate = np.linalg.solve(ridge(raw, 0.02), raw.T @ (is_value - is_value.mean()))
    threshold = is_value.mean() - gate @ centre - OFFSET

    to_word = np.linalg.solve(ridge(values, 0.1), values.T @ coordinates)
    return {
        "memory_q_proj": query,
        "memory_k_proj": key,
        "beta_proj": GATE * gate[None],
        "beta_bias": GATE * threshold[None],
        "word": to_word.T @ telling.without_mean(),
    }


def finished(weights: Weights, directions: Directions, axes: np.ndarray, gain: float) -> Weights:
    """The weights of a layer that says words along some axes [r, D], so strongly.

    ``voice`` of the weights, a number, is how strongly its attention speaks, as in a `Recording`.
    """
    found = {name: value for name, value in weights.items() if name not in ("word", "voice")}
    found["memory_v_proj"] = axes @ weights["word"]
    found["delta_o_proj"] = gain * weights["voice"] * (directions.spread @ axes.T)
    return found
