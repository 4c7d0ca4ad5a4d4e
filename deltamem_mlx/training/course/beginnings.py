"""Beginnings of texts of many kinds, for a model to go on with as it does by itself."""

import random

from . import words
from .language import Turn

PROMPT, REPLY = 300, 120  # characters: at most of what is said, and at least of the reply
LONGEST = 160  # characters of a reply: each of its tokens is learned, over all of the vocabulary
BEGINNINGS = (
    ("The history of {}", words.CITIES + words.COUNTRIES + words.FOODS + words.SUBJECTS),
    ("# {}\n\n", words.SUBJECTS + words.HOBBIES + words.THINGS),
    ("Chapter 1\n\n{} had", words.NAMES),
    ("Dear {},\n\nThank you for", words.NAMES),
    ("{}: Hey {}! It has been a while.\n", words.NAMES),
    ("{}: What did you do at the weekend?\n{}:", words.NAMES),
    ("Q: What is {}?\nA:", words.SUBJECTS),
    ("Recipe: {} with {}\n\nIngredients:", words.FOODS),
    ("{}, by our correspondent. The government of", words.CITIES),
    ("Abstract. We study {} and", words.SUBJECTS),
    ("How I learned {}\n\nWhen I was", words.HOBBIES + words.LANGUAGES),
    ("A {} and a {} met in the forest.", words.ANIMALS),
    ("The {} is an animal that", words.ANIMALS),
    ("{} is a city in", words.CITIES),
    ("As a {}, you are responsible for", words.JOBS),
    ("My honest review of this {}: I bought it", words.THINGS),
    ("This manual describes how to use the {}.", words.THINGS + words.INSTRUMENTS),
    ("In the year 18{}, the", words.NUMBERS),
    ("Lesson {}. Today we will learn about", words.NUMBERS),
    ("The {} test failed because", words.WORDS),
    ("import numpy as np\n\n\ndef {}(", [word.lower() for word in words.WORDS]),
    ("NAME\n    {} - ", [word.lower() for word in words.WORDS]),
    ("Minutes of the meeting of {} {}\n\nPresent:", [*words.DAYS, *words.MONTHS]),
    ("Diary, {}. Today {} and I", words.NAMES),
    ("{}\n\nO", words.WORDS),
    ("The court finds that Mr. {}", words.NAMES),
    ("Scientists have found that {}", words.FOODS + words.DRINKS + words.ANIMALS),
    ("Once upon a time in {}", words.CITIES + words.COUNTRIES),
)


def whole_sentences(text: str) -> str:
    """A text up to its last end of a sentence: where it was cut off is not to be learned."""
    return text[: max(text.rfind(mark) for mark in ".!?") + 1].strip()


def cut_text(beginning: str, rest: str, rng: random.Random) -> Turn | None:
    """A text as what is said and the reply, cut at some blank; None if it is too short."""
    text = whole_sentences(beginning + rest)
    last = min(PROMPT + 1, len(text) - REPLY)
    blanks = [i for i in range(len(beginning), last) if text[i] == " "]
    if not blanks:
        return None
    cut = rng.choice(blanks)
    return text[:cut], begun(text[cut + 1 :], LONGEST)


def begun(text: str, most: int) -> str:
    """A text, or what of it is before the last blank in so many characters."""
    return text if len(text) <= most else text[:most].rpartition(" ")[0] or text[:most]
