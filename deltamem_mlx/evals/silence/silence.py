"""`eval silence`: how far answers to unrelated questions are from the plain model's.

A memory that has nothing to say should change nothing: the distribution of an answer's first token
is that of the plain model. How far it is from it is a Kullback-Leibler divergence, in nats.
"""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ...memory.actions import read_only
from ...text.messages import Message
from ..benchmarks.reader import Reader
from ..intervals import paired_bootstrap
from ..journal import Journal, Row
from ..recall.episodes import Cell, RecallEpisode
from ..recall.facts import fact_episodes
from .talk import two_people

FACTS = 4
HISTORIES: dict[str, str] = {
    "facts": "four told facts went through the memory",
    "chat": "a long chat of two people went through the memory, session by session",
}
ALL = "all"


Told = Sequence[Sequence[Message]]  # conversations, told one after the other


class Histories(NamedTuple):
    """What is told before the questions, several of each kind.

    Attributes:
        facts (Sequence[Told]): Facts about people.
        chat (Sequence[Told]): Chats of two people.
    """

    facts: Sequence[Told]
    chat: Sequence[Told]


def histories(reader: Reader, count: int, *, tokens: int, seed: int = 0) -> Histories:
    """Made-up facts and chats in English: so many of each, the chats with so many tokens."""
    cell = Cell("told", FACTS, 0)
    rngs = [random.Random(f"{seed} chat {i}") for i in range(count)]
    return Histories(
        [[episode.tell] for episode in fact_episodes(count, seed=seed, cells=[cell])],
        [two_people(tokens, reader.count, rng) for rng in rngs],
    )


def histories_of(
    episodes: Sequence[RecallEpisode], reader: Reader, count: int, *, tokens: int
) -> Histories:
    """The same from recall episodes, for a model that speaks their language only.

    The facts are those of the first episodes with four and nothing else; the chats are what tells
    nothing in others, joined.
    """
    facts: list[Told] = [[e.tell] for e in episodes if e.cell == ("told", FACTS, 0)]
    talk = [e.tell[2 * e.facts :] for e in episodes if e.kind == "told" and e.distractors]
    chats: list[Told] = []
    for number in range(count):
        told: list[Sequence[Message]] = []
        used = 0
        for own in talk[number::count]:
            if used >= tokens:
                break
            told.append(own)
            used += sum(reader.count(str(message["content"])) for message in own)
        chats.append(told)
    return Histories(facts[:count], chats)


def talk_of(episodes: Sequence[RecallEpisode]) -> tuple[str, ...]:
    """What users say in episodes that tells nothing, each once."""
    said = [
        str(message["content"])
        for e in episodes
        if e.kind == "told" and e.distractors
        for message in e.tell[2 * e.facts :]
        if message["role"] == "user"
    ]
    return tuple(sorted(set(said)))


def silence(
    reader: Reader,
    questions: Mapping[str, Sequence[str]],
    told: Histories,
    *,
    journal: Journal,
    tell: Callable[[int], None] | None = None,
) -> list[Row]:
    """How far each first token of an answer is from the plain model's, after each kind of history.

    The n-th question of a kind is asked after the n-th history, and so on from the first. Memories
    are read and not written; what was told is not in the context.

    Args:
        reader (Reader): Model and adapter.
        questions (Mapping[str, Sequence[str]]): By kind.
        told (Histories): What the memories hold.
        journal (Journal): Where results are kept; those it holds are not computed again.
        tell (Callable[[int], None]): Told how many more are done.

    Returns:
        list[Row]: ``id``, ``kind``, ``question``, ``history`` and ``nats`` (KL of the plain model's
        distribution to that with the memory).
    """
    for history, conversations in told._asdict().items():
        for number, own in enumerate(conversations):
            asked = [
                (kind, text)
                for kind, texts in questions.items()
                for text in texts[number :: len(conversations)]
            ]
            ids = [f"{history}/{kind}/{text}" for kind, text in asked]
            if any(i not in journal.rows for i in ids):
                state = reader.tell(own)
                rows = []
                for i, (kind, text) in zip(ids, asked, strict=True):
                    nats = divergence(*(_first_token(reader, text, s) for s in (None, state)))
                    base = {"id": i, "kind": kind, "question": text, "history": history}
                    rows.append(base | {"nats": nats})
                journal.add(rows)
            if tell is not None:
                tell(len(ids))
    names = [(h, kind, text) for h in HISTORIES for kind, own in questions.items() for text in own]
    return [journal.rows[f"{history}/{kind}/{text}"] for history, kind, text in names]


def _first_token(reader: Reader, question: str, state: Mapping[int, mx.array] | None) -> np.ndarray:
    """Logits of the first token of an answer, float64 [vocabulary]."""
    cache = reader.cache(state)
    prompt = reader.prompt([{"role": "user", "content": question}])
    with read_only(cache):
        logits = reader.model(mx.array(prompt.token_ids)[None], cache=cache)[0, -1]
    return np.array(logits.astype(mx.float32), np.float64)


def divergence(plain: np.ndarray, other: np.ndarray) -> float:
    """KL(plain ‖ other) of the distributions that logits stand for, in nats.

    Raises:
        ValueError: If it is not finite: logits that are NaN or infinite.
    """
    with np.errstate(invalid="ignore"):  # said below
        p, q = (x - np.logaddexp.reduce(x) for x in (plain, other))
    nats = float(np.sum(np.exp(p) * (p - q)))
    if not np.isfinite(nats):
        raise ValueError(
            f"The divergence of two answers is {nats}, not a finite number. Check the model and "
            "the adapter; weights in float16 may overflow where bfloat16 does not."
        )
    return max(0.0, nats)


def summary(rows: Iterable[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """A table's lines: one for each kind of question, and one for all.

    Args:
        rows (Iterable[Row]): From ``silence``.
        seed (int): Of the bootstrap.

    Returns:
        list[dict]: JSON values: ``kind``, ``questions``, and by history ``nats`` (the mean),
        ``low`` and ``high`` (bootstrap over the questions, 95 %).
    """
    found = list(rows)
    lines = []
    for kind in (*dict.fromkeys(row["kind"] for row in found), ALL):
        line: dict[str, Any] = {"kind": kind, "questions": 0}
        for history in dict.fromkeys(row["history"] for row in found):
            nats = [
                r["nats"] for r in found if r["history"] == history and kind in (ALL, r["kind"])
            ]
            mean = paired_bootstrap(nats, [0.0] * len(nats), seed=seed)
            line["questions"] = len(nats)
            line[history] = dict(zip(("nats", "low", "high"), mean, strict=True))
        lines.append(line)
    return lines
