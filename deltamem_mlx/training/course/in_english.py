"""English, as a language of the course."""

import random
from collections.abc import Sequence
from functools import cached_property

from ...evals.silence.questions import QUESTIONS
from .beginnings import BEGINNINGS
from .english import EnglishTeller
from .histories import EnglishHistories
from .language import History, Turn
from .library import Library, passage
from .prompts import EVERYDAY, ORDINARY, WORDINGS, filled


class English:
    """What is told, asked and talked of in English; nothing of it is in the evaluations."""

    @cached_property
    def _library(self) -> Library:
        return Library(random.Random(0))

    def teller(self, seed: int, any_words: Sequence[str] = ()) -> EnglishTeller:
        """Makes conversations; ``any_words`` may be values of any fact."""
        return EnglishTeller(seed, any_words)

    def ordinary(self, count: int, rng: random.Random) -> list[str]:
        """Questions that are answered at some length."""
        return filled(ORDINARY, rng, count)

    def everyday(self, count: int, rng: random.Random) -> list[str]:
        """Questions, requests and small talk of many kinds."""
        found = [*EVERYDAY, *filled([*WORDINGS, *ORDINARY], rng, max(0, count - len(EVERYDAY)))]
        rng.shuffle(found)
        return found[:count]

    def beginnings(self, count: int, rng: random.Random) -> list[str]:
        """Beginnings of texts of many kinds."""
        return filled(BEGINNINGS, rng, count)

    def passages(self, count: int, rng: random.Random) -> list[Turn]:
        """Paragraphs of the documentation in Python's standard library."""
        texts = self._library.texts
        return [passage(text, rng) for text in rng.sample(texts, min(count, len(texts)))]

    def histories(self, teller: EnglishTeller, talk: Sequence[Turn]) -> list[History]:
        """Facts, chats of two people, running text, code, lists, ordinary talk."""
        asked = frozenset(text for texts in QUESTIONS.values() for text in texts)
        return EnglishHistories(teller, self._library, talk, asked).kinds()
