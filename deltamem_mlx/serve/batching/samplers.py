"""How the tokens of answers are chosen: mlx-lm's samplers, tried out before they are used."""

from collections.abc import Sequence

import mlx.core as mx
from mlx_lm.server import GenerationArguments

from ...compat import make_logits_processors, make_sampler
from ..errors import ApiError
from ..provider import ServedPair
from .ending import Sampler
from .lockstep import Lockstep

_MOST = 64


class Samplers:
    """One for all who sample alike: mlx-lm calls it once for the batch, if it is everyone's.

    Args:
        pair (ServedPair): The model.
        lockstep (Lockstep): The processes that have the model.
    """

    def __init__(self, pair: ServedPair, lockstep: Lockstep):
        self._pair, self._lockstep = pair, lockstep
        self._known: dict[tuple[object, ...], Sampler] = {}

    def of(self, args: GenerationArguments) -> Sampler:
        """The sampler of a request."""
        key = _sampling(args)
        if key not in self._known:
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[key] = make_sampler(args, self._pair.tokenizer)
        return self._known[key]

    def check(self, args: GenerationArguments) -> None:
        """Sample a row of nothing: what mlx-lm refuses is this request's, not the whole batch's.

        Raises:
            ApiError: If these parameters cannot be used.
        """
        bias = args.logits.logit_bias
        if bias and not all(0 <= token < self._pair.vocabulary for token in bias):
            raise ApiError(
                400, "logit_bias: a token id is not in the vocabulary.", param="logit_bias"
            )
        known = _sampling(args) in self._known
        try:
            processors = make_logits_processors(args)
            if known and not processors:
                return
            row = mx.zeros((1, self._pair.vocabulary))
            for processor in processors:
                row = processor(mx.array([0]), row)
            mx.eval(self.of(args)(row))
        except Exception as error:
            self._known.clear()
            self._lockstep.shuffle()
            said = str(error) or type(error).__name__
            raise ApiError(400, f"These sampling parameters cannot be used: {said}") from None


class SaidAgain:
    """A sampler that begins with tokens that were said before.

    Args:
        sampler (Callable): Chooses what comes after them.
        tokens (Sequence[int]): What was said.
    """

    def __init__(self, sampler: Sampler, tokens: Sequence[int]):
        self._sampler, self._tokens, self._count = sampler, tokens, 0

    def __call__(self, logprobs: mx.array) -> mx.array:
        """The next token [1], from logprobs [1, V]."""
        place, self._count = self._count, self._count + 1
        if place < len(self._tokens):
            return mx.array([self._tokens[place]], mx.uint32)
        return self._sampler(logprobs)


def _sampling(args: GenerationArguments) -> tuple[object, ...]:
    return tuple(vars(args.sampling).values())
