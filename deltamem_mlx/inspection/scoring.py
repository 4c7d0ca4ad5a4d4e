"""How likely words are in an answer: as its beginning, or after a part of it."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

Tokens = tuple[int, ...]


class Placement(NamedTuple):
    """Tokens, and those of an answer that they are said after."""

    after: Tokens
    tokens: Tokens


class Read:
    """A model that has read a prompt, but for its last token.

    Args:
        model (nn.Module): The model.
        prompt (Sequence[int]): What is to be answered.
        cache (list): A prompt cache that holds it. Not changed.
    """

    def __init__(self, model: nn.Module, prompt: Sequence[int], cache: list) -> None:
        self._model, self._last, self._cache = model, list(prompt[-1:]), cache

    def log_probs(self, answer: Sequence[int]) -> mx.array:
        """[T + 1, V] float32, in nats: what is likely to come first, and after each of T tokens."""
        tokens = mx.array([[*self._last, *answer]])
        logits = self._model(tokens, cache=copy.deepcopy(self._cache))[0].astype(mx.float32)
        return logits - mx.logsumexp(logits, axis=-1, keepdims=True)

    def log_prob(self, place: Placement) -> float:
        """Of tokens after a part of an answer, the sum over them."""
        after, tokens = place
        log_probs = self.log_probs([*after, *tokens[:-1]])[len(after) :]
        chosen = mx.take_along_axis(log_probs, mx.array(list(tokens))[:, None], axis=-1)
        return float(np.array(chosen.sum()))


def placed(
    tokenizer: TokenizerWrapper,
    texts: Sequence[str],
    replies: Sequence[Tokens],
    read: Sequence[Read],
) -> list[Placement]:
    """Where each text fits best: as the beginning of an answer, or within one of the replies.

    Best is where it is likeliest in the mean over ``read``, with a memory and without: the place
    speaks for neither. Within a reply the best place of the text's first token is tried.
    """
    replies = [reply for reply in replies if len(reply) > 1]
    logs = [sum((one.log_probs(r[:-1])[1:] for one in read), mx.array(0.0)) for r in replies]
    found = []
    for text in texts:
        forms = [tuple(tokenizer.encode(gap + text, add_special_tokens=False)) for gap in ("", " ")]
        places = [Placement((), forms[0])]
        for reply, log in zip(replies, logs, strict=True):
            firsts = log[:, mx.array([form[0] for form in forms])].max(axis=1)
            end = int(np.array(mx.argmax(firsts))) + 1
            places += [Placement(reply[:end], form) for form in forms]
        found.append(max(places, key=lambda place: sum(one.log_prob(place) for one in read)))
    return found
