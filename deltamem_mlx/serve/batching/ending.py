"""The template's end of turn, fed as part of the batch that decodes the reply.

After a reply a memory is fed what the template puts there: an end token and, often, a newline. A
call of its own would cost each turn a pass through the model; here they are the tokens that are
decoded next, whatever the model would have said.
"""

from collections.abc import Callable

import mlx.core as mx
from mlx_lm.generate import StopSequences

Sampler = Callable[[mx.array], mx.array]


class Ending(StopSequences):
    """Sampler and stop sequences of one answer that ends with ``end``.

    Args:
        sampler (Callable): Of the answer.
        stops (StopSequences): Of the answer; one that ``end`` does not begin with ends it at once.
        max_tokens (int): After so many tokens ``end`` follows.
        end (list[int]): Begins with the model's end token.

    Attributes:
        reason (str): Why the answer ended: ``stop`` or ``length``; None: it has not.
        fed (int): How many tokens of ``end`` have been fed.
    """

    def __init__(self, sampler: Sampler, stops: StopSequences, max_tokens: int, end: list[int]):
        super().__init__()
        self._sampler, self._stops = sampler, stops.matcher()
        self._max_tokens, self._end = max_tokens, end
        self._forced = [mx.array([token], mx.uint32) for token in end]
        self._sampled, self._count = 0, 0
        self._before: mx.array | None = None  # the token sampled last
        self.reason: str | None = None
        self.fed = 0

    @property
    def closed(self) -> bool:
        """Whether all of ``end`` was fed."""
        return self.fed == len(self._end)

    def sample(self, logprobs: mx.array) -> mx.array:
        """The next token [1], from logprobs [1, V].

        What was sampled last is still being computed, so whether that began ``end`` is asked
        within the graph: waiting for it would stall the batch.
        """
        over, self._sampled = self._sampled - self._max_tokens, self._sampled + 1
        if self.fed or over > 0:
            token = self._following(self.fed + 1)
        else:
            token = self._forced[0] if over == 0 else self._sampler(logprobs)
            if self._before is not None and len(self._end) > 1:
                begun = self._before == self._forced[0]
                token = mx.where(begun, self._following(1), token)
        self._before = token
        return token

    def _following(self, place: int) -> mx.array:
        return self._forced[min(place, len(self._end) - 1)]

    def matcher(self) -> StopSequences.Matcher:
        """What is told of each token that was fed: this, as it is of one answer."""
        return _Told(self)

    def advance(self, token: int) -> bool:
        """Take note of a token that was fed; returns whether it was the last."""
        self._count += 1
        if self.fed or token == self._end[0]:
            self.fed += 1
            self.reason = self.reason or "stop"
            return self.closed
        if self._stops.advance(token):
            self.reason = "stop"
            return True
        if self._count >= self._max_tokens:
            self.reason = "length"
        return False


class _Told(StopSequences.Matcher):
    """Mlx-lm's batch tells this of each token."""

    def __init__(self, ending: Ending):
        self._ending = ending

    def advance(self, token: int) -> bool:
        return self._ending.advance(token)
