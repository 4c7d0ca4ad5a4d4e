"""Only what a grammar allows can be sampled: a logits processor for mlx-lm's loops."""

from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import ApiError

if TYPE_CHECKING:
    from llguidance import LLMatcher


class GrammarProcessor:
    """Follows one answer, and leaves those tokens that may come next.

    What it knows follows from the tokens that it is given, so that a draft model's guesses may be
    taken back. Thoughts before the answer are free. It never raises: that would end all answers
    of a batch.

    Args:
        matcher (LLMatcher): Of the grammar, for this answer alone.
        tokenizer (TokenizerWrapper): Of the model.
        thinks (bool): The prompt ends within the model's thoughts.

    """

    def __init__(self, matcher: "LLMatcher", tokenizer: TokenizerWrapper, *, thinks: bool):
        self._matcher, self._ends = matcher, tokenizer.eos_token_ids
        self._open = list(tokenizer.think_start_tokens or [])
        self._close = list(tokenizer.think_end_tokens or [])
        self._thinks = thinks
        self._prompt: int | None = None  # tokens before the answer
        self._said: list[int] = []
        self._begins = None if thinks else 0  # how many of these are thoughts; None: all
        self._over = False
        self._failed = False

    def check(self) -> None:
        """Raises ApiError if the answer cannot go on."""
        if self._failed:
            raise ApiError(
                400,
                "The model cannot go on as the schema asks: its tokens cannot say that, or the "
                "schema is too complex. Ask for something simpler.",
                code="cannot_follow",
            )

    def __call__(self, tokens: mx.array, logits: mx.array) -> mx.array:
        """The logits [1, V] of the next token after ``tokens`` [N]; -inf: it may not come."""
        self._follow(tokens)
        if self._begins is None or self._over or self._failed:
            return logits
        allowed = self._allowed(logits.shape[-1])
        if not allowed.any() or self._matcher.is_error():
            self._failed = True
            return logits
        limits = mx.finfo(logits.dtype)
        # Penalties of a request's own may have made them infinite, or none.
        finite = mx.nan_to_num(logits, nan=limits.min, posinf=limits.max, neginf=limits.min)
        return mx.where(mx.array(allowed), finite, -mx.inf)

    def _allowed(self, width: int) -> np.ndarray:
        """Which tokens may come next, of so many."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.zeros(width, bool)
        found = np.unpackbits(bits, bitorder="little")[:width]
        allowed[: len(found)] = found
        if not self._said and len(self._open) == 1:
            allowed[self._open] = True
        return allowed

    def _follow(self, tokens: mx.array) -> None:
        if self._prompt is None:
            self._prompt = tokens.size
        if tokens.size == self._prompt + len(self._said) + 1:
            self._take(_integers(tokens[-1:])[0])
            return
        # A draft model guesses, and its guesses may have been taken back.
        said = _integers(tokens[self._prompt :])
        same = 0
        while same < min(len(said), len(self._said)) and said[same] == self._said[same]:
            same += 1
        self._go_back(same)
        for token in said[same:]:
            self._take(token)

    def _take(self, token: int) -> None:
        self._said.append(token)
        if self._begins is None:
            if self._said[-len(self._close) :] == self._close:
                self._begins = len(self._said)
        elif self._said == self._open:
            self._begins = None
        elif not self._over:
            self._over = token in self._ends
            self._matcher.consume_token(token)

    def _go_back(self, count: int) -> None:
        """To after the first ``count`` tokens of the answer."""
        if self._begins is not None and self._begins <= count and not self._over:
            self._matcher.rollback(len(self._said) - count)
            del self._said[count:]
            return
        said, self._said = self._said[:count], []
        self._begins, self._over = None if self._thinks else 0, False
        self._matcher.reset()
        for token in said:
            self._take(token)


def _integers(tokens: mx.array) -> list[int]:
    """Token ids [N], once they are computed."""
    found: list[int] = np.array(tokens).tolist()
    return found
