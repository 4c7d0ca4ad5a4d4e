"""Facts of one's own as episodes: told alone and together with others, and not told at all.

A file is a list of facts:

    [{"tell": "Marta's ferry leaves at six.", "ask": "When does Marta's ferry leave?",
      "value": "six"}, ...]
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ...files import parse_json, read_text
from ...problems import kind_of, raise_problems
from ...text.messages import Message
from .episodes import RecallEpisode
from .facts import UNKNOWN
from .wordings import ACKNOWLEDGEMENTS

FACTS = (1, 2, 4)  # told together, if nothing else is asked for
EXPECTED = 'Expected a list of {"tell": text, "ask": text, "value": text}.'
MOST_BYTES = 64 << 20


class OwnFact(NamedTuple):
    """What is told, a question for it, and what a correct answer contains."""

    tell: str
    ask: str
    value: str


def read_own_facts(path: str | Path) -> list[OwnFact]:
    """The facts in a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no list of facts, or empty: what is wrong is listed.
    """
    text = read_text(path, MOST_BYTES)
    try:
        rows = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is {error}.") from None
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else kind_of(rows)
        raise ValueError(f"{path} holds {found}. {EXPECTED}")
    problems = [f"{path}: fact {i}: {why}" for i, row in enumerate(rows) for why in _wrong(row)]
    raise_problems(problems, "Facts that cannot be used", EXPECTED)
    return [OwnFact(row["tell"], row["ask"], row["value"]) for row in rows]


def own_episodes(
    facts: Sequence[OwnFact], *, sizes: Sequence[int] = FACTS, seed: int = 0
) -> Iterator[RecallEpisode]:
    """Every fact asked for once among 1, 2 and 4 that were told, and once when others were told.

    Facts that follow each other are told together, each in a turn of its own; the last ones with
    the first. A size that is larger than the number of facts is left out, and a fact is asked
    for untold where enough others with another question are there.

    Args:
        facts (Sequence[OwnFact]): In the order of telling.
        sizes (Sequence[int]): How many are told together.
        seed (int): Of the replies, such as "Got it."
    """
    for size in dict.fromkeys(sizes):
        if size > len(facts):
            continue
        for i, fact in enumerate(facts):
            start = i - i % size
            told = [facts[j % len(facts)] for j in range(start, start + size)]
            tell = _told(told, f"{seed} {size} {start}")
            yield RecallEpisode(tell, fact.ask, fact.value, size, fact=fact.tell)
    for size in dict.fromkeys(sizes):
        for i, fact in enumerate(facts):
            later = [facts[(i + j) % len(facts)] for j in range(1, len(facts))]
            others = [other for other in later if other.ask != fact.ask][:size]
            if len(others) == size:
                tell = _told(others, f"{seed} never {size} {i}")
                yield RecallEpisode(tell, fact.ask, UNKNOWN, size, "never", fact=fact.tell)


def _told(facts: Sequence[OwnFact], seed: str) -> tuple[Message, ...]:
    replies = random.Random(seed)
    return tuple(
        message
        for fact in facts
        for message in (
            {"role": "user", "content": fact.tell},
            {"role": "assistant", "content": replies.choice(ACKNOWLEDGEMENTS)},
        )
    )


def _wrong(row: object) -> Iterator[str]:
    if not isinstance(row, Mapping):
        yield f"{kind_of(row)} (expected an object)"
        return
    for name in OwnFact._fields:
        value = row.get(name)
        if not isinstance(value, str) or not value.strip():
            what = "missing" if name not in row else kind_of(value)
            yield f"{name}: {'blank' if isinstance(value, str) else what} (expected text)"
