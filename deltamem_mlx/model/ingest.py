"""Sequence-state writes in progress: which span each coming token belongs to, and sums so far."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

IdRows = Sequence[Sequence[int]] | np.ndarray | mx.array


class Ingest:
    """Span writes of one layer, from the first token of an ingest to its last.

    Every token of an ingest reads the state as it was before. What the tokens project to is
    summed by span; projections are linear, so the mean of a span is its sum over its count, and
    cutting the ingest into any number of calls gives the same writes (arXiv 2605.12357,
    section 3.3).

    Args:
        rows (list[np.ndarray]): For each conversation the span index of its coming tokens,
          counting the ids that occur from 0 in ascending order, -1 where a token is in no span.
        aligned (bool): The rows count positions of the coming calls, padding included, rather
          than real tokens.
    """

    def __init__(self, rows: list[np.ndarray], aligned: bool):
        self.rows = rows
        self.aligned = aligned
        self.fed = [0] * len(rows)
        self.sums: mx.array | None = None

    @classmethod
    def from_ids(cls, ids: np.ndarray) -> "Ingest":
        """Ingest of the ids [B, T] of the next T positions; negative ids belong to no span."""
        return cls([_dense(row) for row in ids], aligned=True)

    def copy(self) -> "Ingest":
        """The same, to go back to: feeding replaces rows and sums and changes nothing in place."""
        new = Ingest(list(self.rows), self.aligned)
        new.fed, new.sums = list(self.fed), self.sums
        return new

    @property
    def done(self) -> bool:
        return all(n >= len(row) for n, row in zip(self.fed, self.rows, strict=True))

    @property
    def longest(self) -> int:
        """Tokens that are still to come of the row that has most of them."""
        return max((len(row) - n for row, n in zip(self.rows, self.fed, strict=True)), default=0)

    @property
    def spans(self) -> int:
        """Number of spans S, the most that any row has."""
        return max((int(row.max()) + 1 for row in self.rows if len(row)), default=0)

    def begin(self, real: np.ndarray | None) -> None:
        """Count real tokens only, and drop rows without a span: those fall back to token writes.

        In an aligned batch the fallback is for all rows or none.

        Args:
            real (np.ndarray): bool [B, n], false at padding, for the first n coming positions.
        """
        if self.aligned and real is not None:
            n = real.shape[1]
            self.rows = [
                _dense(np.concatenate([row[:n][keep[: len(row)]], row[n:]]))
                for row, keep in zip(self.rows, real, strict=True)
            ]
        active = [bool((row >= 0).any()) for row in self.rows]
        if self.aligned:
            active = [any(active)] * len(active)
        self.rows = [row if keep else row[:0] for row, keep in zip(self.rows, active, strict=True)]
        self.aligned = False

    def take(self, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Consume the next tokens of every row.

        Args:
            real (np.ndarray): bool [B, T], false at padding.

        Returns:
            tuple[np.ndarray, np.ndarray]: Span indices [B, T], -1 for none, and bool [B, T], true
            at the tokens that belong to the ingest; real tokens after its end are token writes.
        """
        ids = np.full(real.shape, -1)
        inside = np.zeros(real.shape, bool)
        for b, row in enumerate(self.rows):
            if self.fed[b] >= len(row):
                continue
            coming = row[self.fed[b] :]
            positions = np.flatnonzero(real[b])[: len(coming)]
            ids[b, positions] = coming[: len(positions)]
            inside[b, positions] = True
            self.fed[b] += len(positions)
        return ids, inside

    def add(self, projected: mx.array, ids: np.ndarray) -> None:
        """Add ``projected`` [B, T, P] to the sums of the spans that ``ids`` [B, T] names."""
        member = mx.array((ids[:, :, None] == np.arange(self.spans)).astype(np.float32))
        sums = member.swapaxes(1, 2) @ projected
        self.sums = sums if self.sums is None else self.sums + sums

    def means(self, finished: np.ndarray) -> tuple[mx.array, mx.array]:
        """Mean of what each span projected to, [B, S, P], and which to write, bool [B, S]."""
        counts = np.stack([np.bincount(r[r >= 0], minlength=self.spans) for r in self.rows])
        if self.sums is None:
            raise ValueError("An ingest has means after its first tokens only.")
        means = self.sums / mx.array(np.maximum(counts, 1).astype(np.float32))[:, :, None]
        return means, mx.array((counts > 0) & finished[:, None])

    def finished(self) -> np.ndarray:
        """Bool [B], true where all tokens of the ingest have been fed."""
        return np.array([n >= len(r) for n, r in zip(self.fed, self.rows, strict=True)])

    def select(self, indices: Sequence[int]) -> "Ingest":
        """The rows at ``indices``, as an ingest of its own."""
        new = Ingest([self.rows[i] for i in indices], self.aligned)
        new.fed = [self.fed[i] for i in indices]
        new.sums = None if self.sums is None else self.sums[mx.array(list(indices)), : new.spans]
        return new

    @classmethod
    def concatenate(cls, parts: Sequence["Ingest"]) -> "Ingest":
        """One ingest of several, whose rows may differ in length."""
        new = cls([row for part in parts for row in part.rows], aligned=False)
        new.fed = [n for part in parts for n in part.fed]
        if any(part.sums is not None for part in parts):
            new.sums = mx.concatenate([_pad_spans(part, new.spans, parts) for part in parts])
        return new

    @classmethod
    def nothing(cls, rows: int) -> "Ingest":
        """An ingest of no tokens, for conversations that have none."""
        return cls([np.zeros(0, np.int64)] * rows, aligned=False)

    @property
    def state(self) -> list[mx.array | int | None]:
        """Arrays and numbers that ``from_state`` restores: what a prompt-cache file can hold."""
        lengths = [len(row) for row in self.rows]
        flat = np.concatenate([np.zeros(0, np.int64), *self.rows])
        arrays = [mx.array(a, dtype=mx.int32) for a in (flat, lengths, self.fed)]
        return [*arrays, int(self.aligned), self.sums]

    @classmethod
    def from_state(cls, state: Sequence[Any]) -> "Ingest":
        """The ingest that ``state`` is of, from what a prompt-cache file holds."""
        flat, lengths, fed, aligned, sums = state
        cuts = np.cumsum(np.array(lengths))[:-1]
        new = cls(np.split(np.array(flat).astype(np.int64), cuts), bool(aligned))
        new.fed, new.sums = fed.tolist(), sums
        return new


def _dense(ids: np.ndarray) -> np.ndarray:
    """Ids counted from 0 in ascending order, -1 for negative ones."""
    _, index = np.unique(np.where(ids < 0, -1, ids), return_inverse=True)
    return index.reshape(ids.shape) - int((ids < 0).any())


def _pad_spans(part: Ingest, spans: int, parts: Sequence[Ingest]) -> mx.array:
    width = next(p.sums.shape[-1] for p in parts if p.sums is not None)
    if part.sums is None:
        return mx.zeros((len(part.rows), spans, width))
    return mx.pad(part.sums, [(0, 0), (0, spans - part.sums.shape[1]), (0, 0)])


def span_ids(
    message_ids: IdRows, sentence_ids: IdRows | None, granularity: str
) -> np.ndarray | None:
    """Span id of each token, [B, T], -1 for none; None where the config writes by token.

    Raises:
        ValueError: If the ids are not two-dimensional or differ in shape.
    """
    messages = _as_array("message_ids", message_ids)
    sentences = None if sentence_ids is None else _as_array("sentence_ids", sentence_ids)
    if sentences is not None and sentences.shape != messages.shape:
        raise ValueError(
            f"sentence_ids has shape {list(sentences.shape)}, message_ids "
            f"{list(messages.shape)}: give one of each per token."
        )
    if granularity == "message_mean":
        return messages
    if granularity == "sentence_mean" and sentences is not None:
        return np.where(messages < 0, -1, sentences)
    return None


def _as_array(name: str, ids: IdRows) -> np.ndarray:
    try:
        array = np.array(ids)
    except ValueError as error:
        raise ValueError(f"{name}: the rows differ in length; give one id per token.") from error
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name} has shape {list(array.shape)} and type {array.dtype}, expected integers "
            "[B, T]: one row per conversation, one id per token."
        )
    return array.astype(np.int64)
