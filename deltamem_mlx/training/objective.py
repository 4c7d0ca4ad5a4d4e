"""What training minimises: cross-entropy of the targets, how far the answers are from those of a
teacher, and how open the write gates are."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..model.ingest import Ingest, span_ids
from ..model.patch import config_of
from .batching import EpisodeBatch
from .head import find_heads, labelled_logits
from .margin import exchanged, shortfall
from .passes import Passes, PassMemory
from .read_parts import UNSUPERVISED
from .teacher import Teacher, divergence, with_others

Inputs = dict[str, mx.array]


class Terms(NamedTuple):
    """The terms of the objective, one by one.

    Attributes:
        ce_sum (mx.array): float32, cross-entropy summed over the labelled tokens; with
          ``count_alike`` over the episodes, of each the mean.
        labelled (mx.array): float32, how many those are.
        kl_sum (mx.array): float32 [2], KL(teacher ‖ model) summed in the same way: of a teacher
          with the history in its context, and of one without, where the targets have nothing to do
          with it.
        taught (mx.array): float32 [2], how many those are.
        missing (mx.array): float32, what is missing to the margin to another's memory, summed like
          ``ce_sum``; 0 if none is asked for.
        tokens (mx.array): float32, tokens of the read pass that are not padding.
        written (mx.array): float32, the same of the write pass.
        read_beta (mx.array): float32 [layers], mean write gate in the read pass.
        write_beta (mx.array): float32 [layers], the same in the write pass; 0 without one.
        state_norm (mx.array): float32 [layers], mean Frobenius norm of the states that the read
          pass reads, over the conversations that wrote.
    """

    ce_sum: mx.array
    labelled: mx.array
    kl_sum: mx.array
    taught: mx.array
    missing: mx.array
    tokens: mx.array
    written: mx.array
    read_beta: mx.array
    write_beta: mx.array
    state_norm: mx.array

    @property
    def ce(self) -> mx.array:
        """Mean cross-entropy over the labelled tokens of the batch, or over its episodes."""
        return self.ce_sum / mx.maximum(self.labelled, 1)


@dataclass(frozen=True)
class Sparsity:
    """The write sparsity term: ``weight * mean over layers of (mean β - target)²``."""

    weight: float = 0.01
    target: float = 0.05

    def __call__(self, beta: mx.array) -> mx.array:
        return self.weight * mx.square(beta - self.target).mean()


class Objective:
    """The episode objective of a model with an adapter (arXiv 2605.12357).

    The write pass runs the history through the model with writes on and keeps no context; the
    read pass runs the visible part with writes off, so the history is reachable through the
    states alone. Gradients flow through both.

    Args:
        model (nn.Module): A model with an adapter.
        write_visible (bool): Leave writes on in the read pass, as they are while a chat decodes.
        count_alike (bool): Count each episode alike, not each labelled token.
    """

    def __init__(self, model: nn.Module, write_visible: bool = False, count_alike: bool = False):
        self.model, self.write_visible, self.count_alike = model, write_visible, count_alike
        self.passes = Passes(model)
        self.heads = find_heads(model)
        self.teacher = Teacher(model, self.passes, self.heads)
        self.granularity = config_of(model).memory_write_granularity

    def reading_only(self) -> "Objective":
        """The same, but that nothing is written in the read pass."""
        found = copy(self)
        found.write_visible = False
        return found

    def counted(self, batch: EpisodeBatch) -> int:
        """What the loss of a batch is divided by: labelled tokens, or episodes that have any.

        An episode with replies of both kinds, related to its history and not, is two.
        """
        if not self.count_alike:
            return batch.supervised
        labelled = batch.read_labels[:, 1:] != UNSUPERVISED
        silent = batch.unrelated[:, 1:]
        kinds = (labelled & ~silent).any(axis=1), (labelled & silent).any(axis=1)
        return int(np.sum(kinds))

    def inputs(self, batch: EpisodeBatch, multiple: int = 8) -> Inputs:
        """The arrays that `terms` works on.

        Args:
            batch (EpisodeBatch): Padded episodes.
            multiple (int): The number of labels and of spans is rounded up to a multiple of this.
        """
        row, column = np.nonzero(batch.read_labels[:, 1:] != UNSUPERVISED)
        # One at least, or there would be no logits to take a gradient of.
        count = -(-max(row.size, 1) // multiple) * multiple
        padding = (0, count - row.size)
        silent = batch.unrelated[row, column + 1]
        each = np.ones(row.size, np.float32)
        if self.count_alike:
            kind = 2 * row + silent
            each /= np.bincount(kind)[kind]
        learned = np.where(silent, 0, each).astype(np.float32)
        arrays = {
            "read_tokens": batch.read_tokens,
            "read_mask": batch.read_mask,
            "rows": np.pad(row * batch.read_tokens.shape[1] + column, padding).astype(np.int32),
            "targets": np.pad(batch.read_labels[row, column + 1], padding),
            "weights": np.pad(learned, padding),
            **{k: _placed(*x, count) for k, x in self._lessons(batch, row, silent, each).items()},
        }
        if batch.write_lengths.any():
            arrays |= {"write_tokens": batch.write_tokens, "write_mask": batch.write_mask}
            arrays |= spans_of(batch, self.granularity, multiple)
        return {name: mx.array(array) for name, array in arrays.items()}

    def _lessons(
        self,
        batch: EpisodeBatch,
        row: np.ndarray,
        silent: np.ndarray,
        each: np.ndarray,
    ) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """What the teachers of a batch say, and of which of its labels; nothing without any.

        Args:
            batch (EpisodeBatch): Padded episodes.
            row (np.ndarray): int [N], whose each label is.
            silent (np.ndarray): bool [N], whether the plain model teaches it.
            each (np.ndarray): float32 [N], what it counts.
        """
        places, weights, lessons = [], [], []
        for kind, parts in enumerate((batch.teachers, batch.plains)):
            for episode, part in enumerate(parts):
                at = np.flatnonzero((row == episode) & (silent == bool(kind)))
                if part is not None and at.size:
                    places.append(at)
                    weights.append(np.outer(each[at], np.arange(2) == kind))
                    lessons.append(self.teacher.lesson(part))
        if not places:
            return {}
        at = np.concatenate(places)
        return {
            "taught_weights": (np.concatenate(weights), at),
            "taught_tokens": (np.concatenate([lesson.tokens for lesson in lessons]), at),
            "taught_log_probs": (np.concatenate([lesson.log_probs for lesson in lessons]), at),
        }

    def terms(self, inputs: Inputs, margin: float = 0.0) -> Terms:
        """The terms for one batch, as a function of the model's parameters.

        Args:
            inputs (Inputs): From `inputs`.
            margin (float): Nats that are to be lost more with another's memory; 0: it is not asked.
        """
        written = None
        if "write_tokens" in inputs:
            spans = inputs.get("span_ids"), inputs.get("span_counts")
            written = self.passes.write(inputs["write_tokens"], inputs["write_mask"], *spans)
        memories = self.passes.reading(inputs["read_mask"], written, writes=self.write_visible)
        before = {i: memory.state for i, memory in memories.items()}
        said = self._said(inputs, memories)
        ce = -said[:, 0]
        missing = mx.array(0.0)
        if margin and written is not None:
            missing = self._missing(inputs, written, ce, margin)
        kl_sum = taught = mx.zeros((2,))
        if "taught_tokens" in inputs:
            kl = divergence(inputs["taught_log_probs"], with_others(said[:, 1:]))
            kl_sum = (kl[:, None] * inputs["taught_weights"]).sum(axis=0)
            taught = inputs["taught_weights"].sum(axis=0)
        layers = sorted(memories)
        none = mx.zeros((len(layers),))
        return Terms(
            ce_sum=(ce * inputs["weights"]).sum(),
            labelled=inputs["weights"].sum(),
            kl_sum=kl_sum,
            taught=taught,
            missing=missing,
            tokens=inputs["read_mask"].sum().astype(mx.float32),
            written=inputs["write_mask"].sum().astype(mx.float32) if written else mx.array(0.0),
            read_beta=mx.stack([memories[i].mean_gate for i in layers]),
            write_beta=mx.stack([written[i].mean_gate for i in layers]) if written else none,
            state_norm=_norms([before[i] for i in layers], inputs["write_mask"].any(axis=1))
            if written
            else none,
        )

    def _said(self, inputs: Inputs, memories: dict[int, PassMemory]) -> mx.array:
        """Logarithms of probabilities at the labels as they are read with some memories.

        float32 [N, 1 + K]: of the targets, and of the tokens that a teacher names, if any does.
        """
        caches = self.passes.caches(memories)
        logits = labelled_logits(
            self.model, self.heads, inputs["read_tokens"], caches, inputs["rows"]
        ).astype(mx.float32)
        tokens = inputs["targets"][:, None]
        if "taught_tokens" in inputs:
            tokens = mx.concatenate([tokens, inputs["taught_tokens"]], axis=1)
        # All at once: each time that some of the logits are taken, the gradient makes an array as
        # large as all of them.
        named = mx.take_along_axis(logits, tokens, axis=-1)
        return named - mx.logsumexp(logits, axis=-1, keepdims=True)

    def _missing(
        self, inputs: Inputs, written: dict[int, PassMemory], own: mx.array, margin: float
    ) -> mx.array:
        """What is missing to the margin between the labels' cross-entropies and another's."""
        others = self.passes.reading(
            inputs["read_mask"], exchanged(written), writes=self.write_visible
        )
        foreign = -self._said(inputs, others)[:, 0]
        owners = inputs["rows"] // inputs["read_tokens"].shape[1]
        wrote = inputs["write_mask"].any(axis=1)
        return shortfall(own, foreign, inputs["weights"], owners, wrote, margin)


def spans_of(batch: EpisodeBatch, granularity: str, multiple: int = 1) -> Mapping[str, np.ndarray]:
    """Which span each write token belongs to, and the sizes of the spans, counted from 0.

    Nothing where every token is written by itself: with token writes, and where no token of the
    batch has an id that counts.
    """
    ids = span_ids(batch.message_ids, batch.sentence_ids, granularity)
    if ids is None or not (ids >= 0).any():
        return {}
    ingest = Ingest.from_ids(np.where(batch.write_mask, ids, -1))
    spans = -(-ingest.spans // multiple) * multiple
    counts = [np.bincount(row[row >= 0], minlength=spans) for row in ingest.rows]
    return {
        "span_ids": np.stack(ingest.rows).astype(np.int32),
        "span_counts": np.stack(counts).astype(np.float32),
    }


def _placed(values: np.ndarray, at: np.ndarray, count: int) -> np.ndarray:
    """Rows of an array at their places among so many, with zeros at the others."""
    placed = np.zeros((count, *values.shape[1:]), values.dtype)
    placed[at] = values
    return placed


def _norms(states: list[mx.array | None], wrote: mx.array) -> mx.array:
    """Frobenius norms [layers], the mean over the conversations that wrote."""
    norms = mx.sqrt(
        mx.square(mx.stop_gradient(mx.stack([s for s in states if s is not None]))).sum(
            axis=(2, 3, 4)
        )
    )
    return (norms * wrote).sum(axis=1) / mx.maximum(wrote.sum(), 1)
