"""Episodes in natural language, for any chat model: facts told, changed and asked for.

Facts are about people: where they live, what they do, what their dog is called, and so on. Each
kind of fact is told in several wordings and asked for in others. Everything follows from a seed.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ...text.messages import Message
from .episodes import Cell, RecallEpisode
from .wordings import ACKNOWLEDGEMENTS, CHATS, PEOPLE, RELATIONS, Relation

UNKNOWN = "I do not know"

CELLS = (
    *(Cell("told", facts, 0) for facts in (1, 2, 4, 8, 16)),
    *(Cell("told", 4, distractors) for distractors in (2, 8)),
    *(Cell("updated", facts, 0) for facts in (1, 4)),
    *(Cell("never", facts, 0) for facts in (1, 4)),
)


class Fact(NamedTuple):
    relation: Relation
    subject: str
    value: str


def fact_episodes(
    each: int, *, seed: int = 0, cells: Sequence[Cell] = CELLS
) -> Iterator[RecallEpisode]:
    """``each`` episodes of every cell (of kinds told, updated and never).

    An episode depends on the seed, its cell and its place in it alone: more episodes or other
    cells leave it as it is.
    """
    for cell in cells:
        for i in range(each):
            yield _episode(cell, random.Random(f"{seed} {cell} {i}"))


def _episode(cell: Cell, rng: random.Random) -> RecallEpisode:
    *facts, stranger = _facts(cell.facts + 1, rng)
    turns = [_turn(_said(fact, fact.relation.tells, rng), rng) for fact in facts]
    asked, old = rng.choice(facts), None
    if cell.kind == "updated":
        place, old = facts.index(asked), asked.value
        used = {fact.value for fact in facts}
        asked = asked._replace(
            value=rng.choice([v for v in asked.relation.values if v not in used])
        )
        change = _turn(_said(asked, asked.relation.changes, rng), rng)
        turns.insert(rng.randint(place + 1, len(turns)), change)
    asked = stranger if cell.kind == "never" else asked
    turns += [_chat(rng.choice(CHATS)) for _ in range(cell.distractors)]
    return RecallEpisode(
        tell=tuple(message for turn in turns for message in turn),
        question=_said(asked, asked.relation.asks, rng),
        answer=UNKNOWN if cell.kind == "never" else asked.value,
        facts=cell.facts,
        kind=cell.kind,
        distractors=cell.distractors,
        old=old,
    )


def _facts(count: int, rng: random.Random) -> list[Fact]:
    """Facts of which no two share subject and relation, nor relation and value."""
    pairs = [(relation, subject) for relation in RELATIONS for subject in PEOPLE]
    chosen = rng.sample(pairs, count)
    values = {id(r): rng.sample(r.values, len(r.values)) for r in RELATIONS}
    return [Fact(relation, subject, values[id(relation)].pop()) for relation, subject in chosen]


def _said(fact: Fact, wordings: Sequence[str], rng: random.Random) -> str:
    return rng.choice(wordings).format(s=fact.subject, v=fact.value)


def _turn(text: str, rng: random.Random) -> list[Message]:
    return _chat((text, rng.choice(ACKNOWLEDGEMENTS)))


def _chat(chat: tuple[str, str]) -> list[Message]:
    said, reply = chat
    return [{"role": "user", "content": said}, {"role": "assistant", "content": reply}]
