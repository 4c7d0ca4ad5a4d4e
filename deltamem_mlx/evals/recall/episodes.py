"""Evaluation episodes: a conversation that tells something, and a question about it.

A file has one episode a line, gzipped if its name ends in ``.gz``:

    {"tell": [{"role": "user", "content": "Maria lives in Porto."}, ...],
     "question": "Where does Maria live?", "answer": "Porto", "facts": 1}

``kind`` (``told`` if it is left out), ``distractors`` (turns that tell nothing, 0) and, for changed
facts, ``old`` (the value before) are there too.
"""

import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...files import json_lines, write_atomically
from ...problems import kind_of, raise_problems
from ...text.messages import Message, message_problems

KINDS = ("told", "updated", "never", "heldout_word", "heldout_wording")
EXPECTED = (
    'Expected on each line {"tell": [messages], "question": text, "answer": text, "facts": number},'
    f' and if need be "kind" ({", ".join(KINDS)}), "distractors": number, "old": text.'
)


class Cell(NamedTuple):
    """Episodes that are counted together."""

    kind: str
    facts: int
    distractors: int


@dataclass(frozen=True)
class RecallEpisode:
    """What is told, and one question about it.

    Args:
        tell (tuple[Message, ...]): The conversation that goes into the memory.
        question (str): Asked after its context was dropped.
        answer (str): What a correct answer contains.
        facts (int): How many facts are told.
        kind (str): ``told``; ``updated``: the fact was changed later; ``never``: it was not told;
          ``heldout_word``, ``heldout_wording``: training showed no such words, or wordings.
        distractors (int): Turns that tell nothing.
        old (str): The value before the fact was changed.
        fact (str): The message that tells what is asked for, where it is known: conversations with
          it are not others. No part of files that are read.
    """

    tell: tuple[Message, ...]
    question: str
    answer: str
    facts: int
    kind: str = "told"
    distractors: int = 0
    old: str | None = None
    fact: str | None = None

    @property
    def cell(self) -> Cell:
        return Cell(self.kind, self.facts, self.distractors)


def read_episodes(path: str | Path) -> list[RecallEpisode]:
    """The episodes in a .jsonl or .jsonl.gz file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds none, or lines that are none: named by file, line and field.
    """
    episodes: list[RecallEpisode] = []
    problems: list[str] = []
    for number, row, not_json in json_lines(path):
        values, wrong = ({}, [not_json]) if not_json else _parsed(row)
        problems += [f"{path}:{number}: {problem}" for problem in wrong]
        if not wrong:
            episodes.append(RecallEpisode(**values))
    raise_problems(problems, "Episodes that cannot be used", EXPECTED)
    if not episodes:
        raise ValueError(f"{path} holds no episodes. {EXPECTED}")
    return episodes


def write_episodes(path: str | Path, episodes: Iterable[RecallEpisode]) -> None:
    """Write a file that ``read_episodes`` reads; the same episodes give the same bytes."""
    text = "".join(_as_json(episode) + "\n" for episode in episodes)
    data = text.encode()
    if Path(path).suffix.lower() == ".gz":
        data = gzip.compress(data, mtime=0)
    write_atomically(path, lambda p: p.write_bytes(data))


def in_cells(episodes: Sequence[RecallEpisode], limit: int = 0) -> dict[Cell, list[RecallEpisode]]:
    """Episodes by cell, cells in order, the first ``limit`` of each; 0: all."""
    order = sorted({e.cell for e in episodes}, key=lambda c: (KINDS.index(c.kind), c[1:]))
    cells: dict[Cell, list[RecallEpisode]] = {cell: [] for cell in order}
    for episode in episodes:
        if not limit or len(cells[episode.cell]) < limit:
            cells[episode.cell].append(episode)
    return cells


def digest(episodes: Iterable[RecallEpisode]) -> str:
    """SHA-256 of episodes, in hex: what tells one set from another."""
    found = hashlib.sha256()
    for episode in episodes:
        found.update(_as_json(episode).encode())
    return found.hexdigest()


def _as_json(episode: RecallEpisode) -> str:
    values = {name: value for name, value in asdict(episode).items() if value is not None}
    return json.dumps(values, ensure_ascii=False)


def _parsed(row: object) -> tuple[dict[str, Any], list[str]]:
    """The fields of an episode, and what is wrong with them."""
    if not isinstance(row, Mapping):
        return {}, [f"{kind_of(row)} (expected an object)"]
    values: dict[str, Any] = {"kind": "told", "distractors": 0, "old": None} | {
        name: row[name]
        for name in RecallEpisode.__dataclass_fields__
        if name in row and name != "fact"
    }
    problems = list(_problems(values))
    return values | {"tell": () if problems else tuple(values["tell"])}, problems


def _problems(values: Mapping[str, Any]) -> Iterator[str]:
    for problem in message_problems(values.get("tell")):
        yield f"{problem.field.replace('messages', 'tell', 1)}: {problem.what}"
    needs_old = values["kind"] == "updated" or values["old"] is not None
    for name in ("question", "answer", "old") if needs_old else ("question", "answer"):
        value = values.get(name)
        if not isinstance(value, str) or not value.strip():
            yield f"{name}: {_shown(values, name)} (expected text that is not blank)"
    if values["kind"] not in KINDS:
        yield f"kind: {values['kind']!r} (expected one of {', '.join(KINDS)})"
    for name in ("facts", "distractors"):
        if type(values.get(name)) is not int or values[name] < 0:
            yield f"{name}: {_shown(values, name)} (expected a whole number, 0 or more)"


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "missing"
    value = values[name]
    if value == "" or isinstance(value, int | float):
        return "empty" if value == "" else repr(value)
    return kind_of(value)
