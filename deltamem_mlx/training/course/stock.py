"""What the conversations of a course are made of, written before its first training."""

import random
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from .language import Language, Turn
from .unrelated import never_told

HELD_OUT = 0.15  # of everything that is written

T = TypeVar("T")


class Wanted(NamedTuple):
    """How much is to be written.

    Attributes:
        talk (int): Ordinary questions with an answer.
        texts (int): Texts.
        asked (int): Questions and requests after something else.
    """

    talk: int
    texts: int
    asked: int


class Begun(NamedTuple):
    """What the model is to go on with.

    Attributes:
        talk (list[str]): Ordinary questions.
        texts (list[str]): Beginnings of texts.
        asked (list[str]): Questions and requests of many kinds.
        strangers (list[tuple[list[str], str]]): What is told, and a question for what is not.
        passages (list[Turn]): Texts that are there already, cut in two.
    """

    talk: list[str]
    texts: list[str]
    asked: list[str]
    strangers: list[tuple[list[str], str]]
    passages: list[Turn]


class Portion(NamedTuple):
    """What is trained on, or what is held out.

    Attributes:
        ordinary (list[Turn]): Talk, texts and passages that conversations end with.
        chatted (list[Turn]): Talk that stands between facts.
        asked (list[Turn]): Questions that have nothing to do with what was told.
        strangers (list[tuple[list[str], str]]): What is told, and a question for what is not.
        passages (list[Turn]): Texts cut in two.
    """

    ordinary: list[Turn]
    chatted: list[Turn]
    asked: list[Turn]
    strangers: list[tuple[list[str], str]]
    passages: list[Turn]


class Stock(NamedTuple):
    """All of it.

    Attributes:
        train, valid (Portion): What is trained on, and what is held out.
        answers (dict[str, str]): What the model says to the questions for what was not told.
        any_words (list[str]): Words of its vocabulary.
    """

    train: Portion
    valid: Portion
    answers: dict[str, str]
    any_words: list[str]


def begin(language: Language, wanted: Wanted, any_words: Sequence[str], seed: int) -> Begun:
    """What is to be written, from a seed."""
    rng = random.Random(seed)
    return Begun(
        language.ordinary(wanted.talk, rng),
        language.beginnings(wanted.texts, rng),
        language.everyday(wanted.asked, rng),
        never_told(language.teller(seed, any_words), max(2, wanted.asked // 2)),
        language.passages(2 * wanted.texts, rng),
    )


def portions(
    start: Begun, talk: Sequence[Turn], texts: Sequence[Turn], asked: Sequence[Turn]
) -> list[Portion]:
    """Train and valid, from what was begun and how the model went on."""
    found = []
    for held in (False, True):
        own_talk, own_texts, own_asked, passages = (
            part_of(turns, held) for turns in (talk, texts, asked, start.passages)
        )
        # Texts of the model's own are of more kinds than passages.
        ordinary = [*own_talk, *own_texts, *own_texts, *passages]
        strangers = part_of(start.strangers, held)
        found.append(Portion(ordinary, own_talk, own_asked, strangers, passages))
    return found


def part_of(items: Sequence[T], held_out: bool) -> list[T]:
    """The held-out part, or the rest; where there are few, both have all of them."""
    count = round(HELD_OUT * len(items))
    if count < 4:
        return list(items)
    return list(items[:count]) if held_out else list(items[count:])
