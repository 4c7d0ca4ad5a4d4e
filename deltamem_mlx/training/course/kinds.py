"""Kinds of facts: what they may be, how they are told, changed and asked for, and the reply.

In a wording ``{s}`` is whom or what it is about, ``{v}`` the value, ``{a}`` "a" or "an" before it.
"""

from typing import NamedTuple

PEOPLE = ("people",)


class FactKind(NamedTuple):
    """A kind of fact.

    Attributes:
        subjects (tuple[str, ...]): About whom or what; ``PEOPLE`` stands for names and relatives.
        values (tuple[str, ...]): What it may be.
        tells (tuple[str, ...]): Wordings that tell it.
        changes (tuple[str, ...]): Wordings that say it is another now.
        asks (tuple[str, ...]): Questions for it.
        reply (str): The answer.
    """

    subjects: tuple[str, ...]
    values: tuple[str, ...]
    tells: tuple[str, ...]
    changes: tuple[str, ...]
    asks: tuple[str, ...]
    reply: str


def kind(
    subjects: tuple[str, ...],
    values: tuple[str, ...],
    *,
    tells: str,
    changes: str,
    asks: str,
    reply: str,
) -> FactKind:
    """A kind of fact from texts in which wordings are separated by bars."""
    return FactKind(subjects, values, _parts(tells), _parts(changes), _parts(asks), reply)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split("|"))
