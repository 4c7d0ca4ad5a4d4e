"""Whether an answer says what it should."""

import re
import unicodedata

# What models say when they do not know, in the form that `words` gives.
_UNKNOWN = (
    "not know",
    "dont know",
    "doesnt know",
    "not sure",
    "no idea",
    "no information",
    "not have",
    "dont have",
    "not mentioned",
    "not mention",
    "didnt mention",
    "not told",
    "havent told",
    "havent mentioned",
    "not said",
    "not specified",
    "not provided",
    "not aware",
    "unknown",
)


def words(text: str) -> list[str]:
    """The words of a text: lower case, without accents, apostrophes and punctuation."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(c for c in plain if not unicodedata.combining(c) and c not in "'\u2019")
    return re.findall(r"\w+", plain)


def contains(text: str, value: str) -> bool:
    """Whether the words of ``value`` stand in ``text``, in order and with nothing between."""
    return f" {' '.join(words(value))} " in f" {' '.join(words(text))} "


def says_unknown(text: str) -> bool:
    """Whether an answer says that it does not know."""
    return any(contains(text, phrase) for phrase in _UNKNOWN)
