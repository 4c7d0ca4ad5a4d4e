"""`eval recall`: what a memory holds when the context is gone.

A conversation tells facts, its context is dropped, a question is asked. The same questions are
answered under several conditions, so that their difference is the memory's alone.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..journal import Journal, Row
from ..runner import Runner, State
from .controls import CellMemories, reloaded, retrieved_turns
from .correct import contains, says_unknown
from .episodes import Cell, RecallEpisode

CONDITIONS: dict[str, str] = {
    "memory": "what was told went through the memory, its context was dropped",
    "none": "an empty memory",
    "foreign": "the memory of another conversation with as many facts",
    "mean": "the mean of the memories of all other conversations with as many facts: what does "
    "not depend on what was told",
    "reloaded": "the memory after a file was saved and loaded",
    "retrieved": "the turns that BM25 finds for the question are in the context, and the memory "
    "empty: the plain model",
    "context": "what was told is in the context, and the memory empty: the plain model",
}
RETRIEVED_TOKENS = 32  # about one fact with its reply
SAME_START = 8  # tokens of an answer that is the plain model's


class RecallBatch(NamedTuple):
    """Questions that are answered together; all are of one cell.

    Attributes:
        first (int): Number of the first question.
        start (int): Its place in its cell.
        episodes (list[RecallEpisode]): The questions.
        memories (CellMemories): Of the cell.
    """

    first: int
    start: int
    episodes: list[RecallEpisode]
    memories: CellMemories


def recall(
    runner: Runner,
    cells: Mapping[Cell, Sequence[RecallEpisode]],
    *,
    conditions: Sequence[str] = tuple(CONDITIONS),
    retrieved_tokens: int = RETRIEVED_TOKENS,
    journal: Journal | None = None,
    on_answers: Callable[[int], None] | None = None,
) -> list[Row]:
    """Answer every question under every condition.

    Batches follow from the episodes and the runner's batch size alone, and those whose answers
    the journal holds are not computed again.

    Args:
        runner (Runner): Model and adapter.
        cells (Mapping[Cell, Sequence[RecallEpisode]]): The episodes, as ``in_cells`` gives them.
        conditions (Sequence[str]): Names in ``CONDITIONS``. ``foreign`` and ``mean`` are left out
          of a cell in which a question has no other conversation, or only those with its fact.
        retrieved_tokens (int): Of the turns that are retrieved, at most; one in any case.
        journal (Journal): Where answers are kept. Default: nowhere.
        on_answers (Callable[[int], None]): Told how many more answers there are; in all, a question
          has one under each condition.

    Returns:
        list[Row]: A row per question, in order: ``id``, ``kind``, ``facts``, ``distractors``,
        ``question``, ``answer``, ``old``, and by condition ``said``, ``correct``, ``said_old``;
        ``as_plain`` too, if the fact was not told and the plain model (``none``) was asked.

    Raises:
        ValueError: If a condition is unknown.
        ModuleNotFoundError: If ``retrieved`` is asked for without bm25s (the ``eval`` extra).
    """
    unknown = [name for name in conditions if name not in CONDITIONS]
    if unknown:
        raise ValueError(
            f"No such conditions: {', '.join(unknown)}. Expected {', '.join(CONDITIONS)}."
        )
    journal = Journal(None, {}) if journal is None else journal
    tell = on_answers or (lambda answers: None)
    numbers: list[int] = []
    for batch in _batches(runner, cells):
        ids = range(batch.first, batch.first + len(batch.episodes))
        if any(i not in journal.rows for i in ids):
            journal.add(_answer(runner, batch, conditions, retrieved_tokens, tell))
        else:
            tell(len(ids) * len(conditions))
        numbers += ids
    return [journal.rows[i] for i in numbers]


def _batches(
    runner: Runner, cells: Mapping[Cell, Sequence[RecallEpisode]]
) -> Iterator[RecallBatch]:
    first, size = 0, runner.batch_size
    for episodes in cells.values():
        memories = CellMemories(runner, episodes)
        for start in range(0, len(episodes), size):
            chosen = list(episodes[start : start + size])
            yield RecallBatch(first + start, start, chosen, memories)
        first += len(episodes)


def _answer(
    runner: Runner,
    batch: RecallBatch,
    conditions: Sequence[str],
    retrieved_tokens: int,
    tell: Callable[[int], None],
) -> list[Row]:
    questions = [[{"role": "user", "content": e.question}] for e in batch.episodes]
    plain = replace(runner, write_questions=False)
    said = {}
    for name in conditions:
        if name in ("context", "retrieved"):
            shown = [
                e.tell if name == "context" else retrieved_turns(runner, e, retrieved_tokens)
                for e in batch.episodes
            ]
            said[name] = plain.ask([[*s, *q] for s, q in zip(shown, questions, strict=True)])
        elif (states := _states(runner, batch, name)) is not None:
            said[name] = runner.ask(questions, states)
        tell(len(batch.episodes))
    return [
        _row(runner, batch.first + i, episode, {name: texts[i] for name, texts in said.items()})
        for i, episode in enumerate(batch.episodes)
    ]


def _states(runner: Runner, batch: RecallBatch, condition: str) -> list[State | None] | None:
    """The memory under which each question of a batch is asked; None: there is no such memory."""
    places = range(batch.start, batch.start + len(batch.episodes))
    memories = batch.memories
    if condition == "none":
        return [None for _ in places]
    if condition in ("foreign", "mean") and memories.alone:
        return None
    if condition == "reloaded":
        return [reloaded(runner, memories.own(i)) for i in places]
    chosen = {"memory": memories.own, "foreign": memories.foreign, "mean": memories.mean}
    return [chosen[condition](i) for i in places]


def _row(runner: Runner, number: int, episode: RecallEpisode, said: Mapping[str, str]) -> Row:
    old = episode.old
    row = {
        "id": number,
        **episode.cell._asdict(),
        "question": episode.question,
        "answer": episode.answer,
        "old": old,
        "said": dict(said),
        "correct": {name: is_correct(episode, text) for name, text in said.items()},
        "said_old": {name: old is not None and contains(text, old) for name, text in said.items()},
    }
    # An empty memory that questions are written into is not the plain model for long.
    if episode.kind == "never" and "none" in said and not runner.write_questions:
        row["as_plain"] = {n: _is_as_plain(runner, text, said["none"]) for n, text in said.items()}
    return row


def _is_as_plain(runner: Runner, said: str, plain: str) -> bool:
    """Whether two answers begin alike, or both say that they do not know."""
    starts = [runner.tokens(text)[:SAME_START] for text in (said, plain)]
    return starts[0] == starts[1] or (says_unknown(said) and says_unknown(plain))


def is_correct(episode: RecallEpisode, said: str) -> bool:
    """Whether an answer holds the value: the newest and not the old one of a changed fact.

    Where nothing was told, saying so is correct.
    """
    if episode.kind == "never" and says_unknown(said):
        return True
    stale = episode.old is not None and contains(said, episode.old)
    return contains(said, episode.answer) and not stale
