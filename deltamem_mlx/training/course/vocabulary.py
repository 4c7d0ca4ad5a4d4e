"""Words of a model's vocabulary."""

import re
from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...evals.recall.wordings import PEOPLE
from ...evals.recall.wordings import RELATIONS as EVALUATED
from .rendering import ChatForm

BLANKS = "Ġ▁"  # how tokenizers write the blank before a word
_WORD = re.compile(r"[A-Za-z][a-z]{2,}")
MOST = 16_000


def words_of(chat: ChatForm) -> dict[str, int]:
    """Words that are one token, with it; without the names and values that `eval recall` has.

    Where the vocabulary has words behind a blank, only those are words: others are pieces.
    """
    asked = {value.lower() for relation in EVALUATED for value in relation.values}
    asked |= {name.lower() for name in PEOPLE}
    vocabulary = chat.tokenizer.get_vocab()
    begun = {token: i for token, i in vocabulary.items() if token[:1] in BLANKS and token[1:]}
    found = {token.lstrip(BLANKS): i for token, i in (begun or vocabulary).items()}
    usable = {w: i for w, i in found.items() if _WORD.fullmatch(w) and w.lower() not in asked}
    return dict(sorted(usable.items()))


def expected(model: nn.Module, texts: Sequence[list[int]]) -> np.ndarray:
    """How likely each token is at any place of some texts, as the model sees it; float32 [V]."""
    total, count = np.zeros(()), 0
    for tokens in texts:
        probabilities = mx.softmax(model(mx.array([tokens])).astype(mx.float32), axis=-1)[0]
        total = total + np.array(probabilities.sum(axis=0), np.float64)
        count += len(tokens)
        mx.clear_cache()
    return np.asarray(total / max(1, count), np.float32)


def likeliest(words: dict[str, int], likely: np.ndarray, most: int = MOST) -> list[str]:
    """The words that a model expects most, in the order of the alphabet."""
    chosen = sorted(words, key=lambda word: -likely[words[word]])[:most]
    return sorted(chosen)
