"""Scores of an answer against the true one: exact match, token F1, ROUGE-L."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> list[str]:
    """The words of a text as HotpotQA counts them: lower case, no punctuation, no articles."""
    return _words(text.lower(), "a|an|the")


def stems(text: str) -> list[str]:
    """The words of a text as LoCoMo counts them: also without "and", as Porter stems.

    Raises:
        ModuleNotFoundError: If snowballstemmer (the ``eval`` extra) is missing.
    """
    import snowballstemmer  # optional: the `eval` extra

    plain = unicodedata.normalize("NFD", text).replace(",", "").lower()
    return snowballstemmer.stemmer("porter").stemWords(_words(plain, "a|an|the|and"))


def _words(text: str, dropped: str) -> list[str]:
    return re.sub(rf"\b({dropped})\b", " ", text.translate(_PUNCTUATION)).split()


def f1(said: Sequence[str], true: Sequence[str]) -> float:
    """The harmonic mean of precision and recall over counts of words; 1 if both are empty."""
    if not said or not true:
        return float(not said and not true)
    common = sum((Counter(said) & Counter(true)).values())
    return 2 * common / (len(said) + len(true))


def rouge_l(said: Sequence[str], true: Sequence[str]) -> float:
    """F1 of the longest common subsequence of words."""
    if not said or not true:
        return float(not said and not true)
    row = [0] * (len(true) + 1)
    for word in said:
        before = row
        row = [0]
        for i, other in enumerate(true):
            row.append(before[i] + 1 if word == other else max(before[i + 1], row[i]))
    return 2 * row[-1] / (len(said) + len(true))


def holds(said: Sequence[str], true: Sequence[str]) -> bool:
    """Whether the words of ``true`` stand in ``said``, in order and with nothing between."""
    return bool(true) and f" {' '.join(true)} " in f" {' '.join(said)} "
