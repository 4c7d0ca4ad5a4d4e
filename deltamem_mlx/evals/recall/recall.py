"""`eval recall`: what a memory holds when the context is gone.

A conversation tells facts, its context is dropped, a question is asked. The same questions are
answered under several conditions, so that their difference is the memory's alone.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ...memory.actions import memory_state
from ...memory.file import load_memory, save_memory
from ..journal import Journal, Row
from ..runner import Runner, State
from .correct import contains, says_unknown
from .episodes import Cell, RecallEpisode

CONDITIONS: dict[str, str] = {
    "memory": "what was told went through the memory, its context was dropped",
    "none": "an empty memory",
    "foreign": "the memory of another conversation with as many facts",
    "reloaded": "the memory after a file was saved and loaded",
    "context": "what was told is in the context, and the memory empty: the plain model",
}


class RecallBatch(NamedTuple):
    """Questions that are answered together; all are of one cell.

    Attributes:
        first (int): Number of the first question.
        episodes (list[RecallEpisode]): The questions.
        strangers (list[RecallEpisode]): For each, another conversation of its cell; empty if
          there is none.
    """

    first: int
    episodes: list[RecallEpisode]
    strangers: list[RecallEpisode]


def recall(
    runner: Runner,
    cells: Mapping[Cell, Sequence[RecallEpisode]],
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    journal: Journal | None = None,
    on_answers: Callable[[int], None] | None = None,
) -> list[Row]:
    """Answer every question under every condition.

    Batches follow from the episodes and the runner's batch size alone, and those whose answers
    the journal holds are not computed again.

    Args:
        runner (Runner): Model and adapter.
        cells (Mapping[Cell, Sequence[RecallEpisode]]): The episodes, as ``in_cells`` gives them.
        conditions (Sequence[str]): Names in ``CONDITIONS``.
        journal (Journal): Where answers are kept. Default: nowhere.
        on_answers (Callable[[int], None]): Told how many more answers there are; in all, a question
          has one under each condition.

    Returns:
        list[Row]: A row per question, in order: ``id``, ``kind``, ``facts``, ``distractors``,
        ``question``, ``answer``, ``old``, and by condition ``said``, ``correct``, ``said_old``.

    Raises:
        ValueError: If a condition is unknown.
    """
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise ValueError(
            f"No such conditions: {', '.join(unknown)}. Expected {', '.join(CONDITIONS)}."
        )
    journal = Journal(None, {}) if journal is None else journal
    tell = on_answers or (lambda answers: None)
    numbers: list[int] = []
    for batch in _batches(cells, runner.batch_size):
        ids = range(batch.first, batch.first + len(batch.episodes))
        if any(i not in journal.rows for i in ids):
            journal.add(_answer(runner, batch, conditions, tell))
        else:
            tell(len(ids) * len(conditions))
        numbers += ids
    return [journal.rows[i] for i in numbers]


def _batches(cells: Mapping[Cell, Sequence[RecallEpisode]], size: int) -> list[RecallBatch]:
    batches, first = [], 0
    for episodes in cells.values():
        for start in range(0, len(episodes), size):
            chosen = list(episodes[start : start + size])
            strangers = [_stranger(episodes, start + i) for i in range(len(chosen))]
            known = [] if None in strangers else [e for e in strangers if e is not None]
            batches.append(RecallBatch(first + start, chosen, known))
        first += len(episodes)
    return batches


def _stranger(episodes: Sequence[RecallEpisode], index: int) -> RecallEpisode | None:
    """The next episode in which something else was told."""
    others = (episodes[(index + i) % len(episodes)] for i in range(1, len(episodes)))
    return next((e for e in others if e.tell != episodes[index].tell), None)


def _answer(
    runner: Runner, batch: RecallBatch, conditions: Sequence[str], tell: Callable[[int], None]
) -> list[Row]:
    questions = [[{"role": "user", "content": e.question}] for e in batch.episodes]
    states = _states(runner, batch, conditions)
    said = {}
    for name in conditions:
        if name == "context":
            pairs = zip(batch.episodes, questions, strict=True)
            plain = replace(runner, write_questions=False)
            said[name] = plain.ask([[*episode.tell, *question] for episode, question in pairs])
        elif name in states:
            said[name] = runner.ask(questions, states[name])
        tell(len(batch.episodes))
    return [
        _row(batch.first + i, episode, {name: texts[i] for name, texts in said.items()})
        for i, episode in enumerate(batch.episodes)
    ]


def _states(
    runner: Runner, batch: RecallBatch, conditions: Sequence[str]
) -> dict[str, list[State | None]]:
    """By condition, the memory under which each question of a batch is asked."""
    states: dict[str, list[State | None]] = {"none": [None] * len(batch.episodes)}
    told = {id(episode): episode for episode in batch.episodes}
    if "foreign" in conditions:
        told |= {id(episode): episode for episode in batch.strangers}
    if {"memory", "foreign", "reloaded"} & set(conditions):
        written = dict(zip(told, runner.remember([e.tell for e in told.values()]), strict=True))
        states["memory"] = [written[id(episode)] for episode in batch.episodes]
        if "foreign" in conditions and batch.strangers:
            states["foreign"] = [written[id(episode)] for episode in batch.strangers]
        if "reloaded" in conditions:
            states["reloaded"] = [
                None if state is None else _reloaded(runner, state) for state in states["memory"]
            ]
    return states


def _reloaded(runner: Runner, state: State) -> State:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        save_memory(path, runner.cache(state), runner.model)
        return memory_state(load_memory(path, runner.model))


def _row(number: int, episode: RecallEpisode, said: Mapping[str, str]) -> Row:
    old = episode.old
    return {
        "id": number,
        **episode.cell._asdict(),
        "question": episode.question,
        "answer": episode.answer,
        "old": old,
        "said": dict(said),
        "correct": {name: is_correct(episode, text) for name, text in said.items()},
        "said_old": {name: old is not None and contains(text, old) for name, text in said.items()},
    }


def is_correct(episode: RecallEpisode, said: str) -> bool:
    """Whether an answer holds the value: the newest and not the old one of a changed fact.

    Where nothing was told, saying so is correct.
    """
    if episode.kind == "never" and says_unknown(said):
        return True
    stale = episode.old is not None and contains(said, episode.old)
    return contains(said, episode.answer) and not stale
