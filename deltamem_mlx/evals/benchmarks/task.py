"""What a benchmark is: materials to read, questions about them, prompts and scores.

A task (LoCoMo, HotpotQA, MemoryAgentBench) makes materials from its data, words its prompts and
scores answers; how they are asked is the same for all (``asking.py``).
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, NamedTuple, Protocol

from ...text.messages import Message


class Unit(NamedTuple):
    """The smallest piece of a material, kept or dropped as a whole.

    Attributes:
        text (str): A turn or a sentence.
        head (str): What stands above neighbours with the same head: a date, a title.
    """

    text: str
    head: str = ""


@dataclass(frozen=True)
class Question:
    """A question about a material.

    Args:
        id (str): Unique in its benchmark.
        text (str): What is asked.
        answers (object): JSON value that the task scores against.
        groups (tuple[str, ...]): Lines of the table in which it counts.
        max_tokens (int): Length of the answer at most.
        kind (str): What decides how it is asked and scored.
    """

    id: str
    text: str
    answers: Any
    groups: tuple[str, ...]
    max_tokens: int
    kind: str = ""


@dataclass(frozen=True)
class Material:
    """Something to read, and questions about it.

    Args:
        name (str): Unique in its benchmark.
        units (tuple[Unit, ...]): In the order of reading.
        questions (tuple[Question, ...]): Asked one by one, each on the whole.
        about (Mapping[str, str]): What the prompts mention, such as the speakers' names.
    """

    name: str
    units: tuple[Unit, ...]
    questions: tuple[Question, ...]
    about: Mapping[str, str]


Count = Callable[[str], int]  # how many tokens a text has


class Task(Protocol):
    """A benchmark.

    Attributes:
        name (str): As in ``deltamem-mlx eval NAME``.
        one_line (bool): Only the first non-empty line of an answer counts.
        last_groups (tuple[str, ...]): Groups that end the table; those before are sorted.
        differences (tuple[str, ...]): How the protocol differs from the paper's, a sentence each.
    """

    name: str
    one_line: bool
    last_groups: tuple[str, ...]
    differences: tuple[str, ...]

    def messages(
        self, material: Material, units: Sequence[Unit] | None, question: str, count: Count
    ) -> list[Message]:
        """The prompt on these units of the material; None: the question alone."""

    def tellings(self, material: Material, count: Count) -> list[list[Message]]:
        """The whole material as conversations to be remembered one after the other."""

    def wording(self, question: Question) -> str:
        """What is asked, with what its kind asks in addition."""

    def score(self, question: Question, said: str) -> dict[str, float]:
        """Metric → score between 0 and 1."""


def text_of(units: Sequence[Unit]) -> str:
    """Units as a text: a paragraph for neighbours with the same head, below it."""
    paragraphs = []
    for head, own in groupby(units, key=lambda unit: unit.head):
        paragraphs.append("\n".join([head] * bool(head) + [unit.text for unit in own]))
    return "\n\n".join(paragraphs)


def first_line(text: str) -> str:
    """The first line of a text that is not empty."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def limited(materials: Sequence[Material], limit: int | None, seed: int) -> list[Material]:
    """Materials with ``limit`` questions in all, drawn by ``seed``; None: with all of them.

    A larger limit keeps the questions of a smaller one. Materials without questions are left out.
    """
    ids = [question.id for material in materials for question in material.questions]
    chosen = set(random.Random(seed).sample(ids, len(ids))[:limit])
    kept = [
        replace(m, questions=tuple(q for q in m.questions if q.id in chosen)) for m in materials
    ]
    return [material for material in kept if material.questions]
