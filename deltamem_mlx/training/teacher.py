"""A teacher: the plain model's predictions, which a memory learns to give as well.

Where an answer depends on its history, the teacher is the plain model that has the history in its
context. Where it does not, the teacher is the plain model as it is: a memory that has nothing to
say then learns to say nothing.
"""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .head import labelled_logits
from .passes import Passes
from .read_parts import UNSUPERVISED, ReadPart

# Tokens whose probability is kept of each prediction; all others are taken together.
TOP = 64
# Logarithms of probabilities are at least this, as logits may be minus infinity; for a gradient all
# have to be finite.
_LEAST = -100.0
# What all others together have at least: about what sums of float32 are exact to.
_ROUNDED = 1e-6


class Lesson(NamedTuple):
    """A teacher's predictions at N labels.

    Attributes:
        tokens (np.ndarray): int32 [N, K], the most likely ones.
        log_probs (np.ndarray): float32 [N, K + 1], of those, and last of all others together.
    """

    tokens: np.ndarray
    log_probs: np.ndarray


class Teacher:
    """The model without its memory. What it says of a part is computed once and then kept.

    Each part is computed by itself, so that a lesson does not depend, in its last bits, on what
    else is in a batch: a run that goes on gets those it got before.

    Args:
        model (nn.Module): A model with an adapter.
        passes (Passes): Of the model.
        heads (Sequence[str]): From `find_heads`.
    """

    def __init__(self, model: nn.Module, passes: Passes, heads: Sequence[str]):
        self.model, self.passes, self.heads = model, passes, heads
        self._lessons: dict[tuple[bytes, bytes], Lesson] = {}

    def lesson(self, part: ReadPart) -> Lesson:
        """The predictions at the labels of a part that have a token before them."""
        key = part.tokens.tobytes(), part.labels.tobytes()
        if key not in self._lessons:
            self._lessons[key] = self._computed(part)
        return self._lessons[key]

    def _computed(self, part: ReadPart) -> Lesson:
        rows = np.flatnonzero(part.labels[1:] != UNSUPERVISED)
        if not rows.size:
            return Lesson(np.zeros((0, 1), np.int32), np.zeros((0, 2), np.float32))
        tokens = mx.array(part.tokens)[None]
        # An empty memory that is only read changes nothing: this is the plain model.
        memories = self.passes.reading(mx.ones(tokens.shape, mx.bool_), None)
        caches = self.passes.caches(memories)
        logits = labelled_logits(self.model, self.heads, tokens, caches, mx.array(rows))
        logits = logits.astype(mx.float32)
        top = min(TOP, logits.shape[-1] - 1)
        likely = mx.argpartition(-logits, top, axis=-1)[:, :top]
        return Lesson(np.array(likely.astype(mx.int32)), np.array(log_probs(logits, likely)))


def log_probs(logits: mx.array, tokens: mx.array) -> mx.array:
    """Logarithms of the probabilities [N, K + 1] of tokens [N, K], and of all others together."""
    named = mx.take_along_axis(logits, tokens, axis=-1)
    return with_others(named - mx.logsumexp(logits, axis=-1, keepdims=True))


def with_others(named: mx.array) -> mx.array:
    """Logarithms of the probabilities [N, K] of some tokens; with those of all others together.

    Not summed over the others one by one: over a vocabulary of 262,144 that takes, with its
    gradient, longer than the head itself.
    """
    others = mx.log(mx.maximum(1 - mx.exp(named).sum(axis=-1, keepdims=True), _ROUNDED))
    return mx.maximum(mx.concatenate([named, others], axis=-1), _LEAST)


def divergence(taught: mx.array, said: mx.array) -> mx.array:
    """KL(teacher ‖ model) [N] in nats, of the named tokens and all others together.

    It is at most that of the whole distributions.

    Args:
        taught (mx.array): float32 [N, K + 1], the teacher's logarithms of probabilities.
        said (mx.array): float32 [N, K + 1], the model's.
    """
    return (mx.exp(taught) * (taught - said)).sum(axis=-1)
