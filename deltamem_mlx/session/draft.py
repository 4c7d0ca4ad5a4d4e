"""A smaller model that guesses ahead of the one with the memory."""

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import generation_stream
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache, trim_prompt_cache

from ..memory.actions import PromptCache

NUM_DRAFT_TOKENS = 2


class Draft:
    """A draft model and its own prompt cache, which follows the context of a conversation.

    It has no memory of what the context has lost, so it guesses worse there; what the model says
    is the same whatever it guesses.

    Args:
        model (nn.Module): With the vocabulary of the model that it drafts for.

    Attributes:
        tokens (list[int]): What its cache has been fed.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.cache: PromptCache = make_prompt_cache(model)
        self.tokens: list[int] = []

    def fresh(self) -> "Draft":
        """The same model with a cache of its own."""
        return Draft(self.model)

    def follow(self, tokens: list[int], step_size: int) -> None:
        """Make the cache hold just ``tokens``: cut it where they part, and feed the rest."""
        same = next(
            (i for i, (a, b) in enumerate(zip(self.tokens, tokens, strict=False)) if a != b),
            min(len(self.tokens), len(tokens)),
        )
        surplus = len(self.tokens) - same
        if surplus and can_trim_prompt_cache(self.cache):
            trim_prompt_cache(self.cache, surplus)
        elif surplus:
            self.cache, same = make_prompt_cache(self.model), 0
        rest = mx.array(tokens[same:], dtype=mx.uint32)
        with mx.stream(generation_stream):
            for start in range(0, len(tokens) - same, step_size):
                self.model(rest[None, start : start + step_size], cache=self.cache)
                mx.eval([c.state for c in self.cache])
        self.tokens = list(tokens)

    def has_been_fed(self, tokens: list[int]) -> None:
        """Take note that mlx-lm fed the cache with the first of ``tokens``, as many as it holds."""
        fed = getattr(self.cache[0], "offset", None)
        if fed is None:  # a cache that does not tell begins anew
            self.cache, fed = make_prompt_cache(self.model), 0
        self.tokens = tokens[:fed]
