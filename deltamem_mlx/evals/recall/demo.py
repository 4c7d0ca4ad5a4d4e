"""The demonstration: a story told to the built-in pair, and a short evaluation of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ..runner import Runner
from .builtin_data import Story
from .correct import contains
from .episodes import Cell, RecallEpisode
from .recall import recall
from .scores import Scores, scores

CONDITIONS = ("memory", "none", "foreign")
CELLS = (
    *(Cell("told", facts, 0) for facts in (1, 2, 4, 8)),
    Cell("updated", 4, 0),
    Cell("never", 4, 0),
)


class DemoAnswer(NamedTuple):
    """What was answered to a question of the story, by condition.

    Attributes:
        question (str): What was asked.
        answer (str): The value that was told.
        said (dict[str, str]): Condition → answer.
        correct (dict[str, bool]): Condition → whether the answer has the value.
    """

    question: str
    answer: str
    said: dict[str, str]
    correct: dict[str, bool]


class Told(NamedTuple):
    """The story's answers, and the size of the memory that they came from.

    Attributes:
        answers (list[DemoAnswer]): In the order of the questions.
        memory_bytes (int): Size of the memory of one conversation.
    """

    answers: list[DemoAnswer]
    memory_bytes: int


def tell_story(runner: Runner, story: Story) -> Told:
    """Write both conversations, drop their contexts, ask every question under every condition."""
    own, other = runner.remember([story.tell, story.other])
    questions = [[{"role": "user", "content": question}] for question, _ in story.questions]
    states = dict(zip(CONDITIONS, (own, None, other), strict=True))
    said = {name: runner.ask(questions, [state] * len(questions)) for name, state in states.items()}
    answers = []
    for i, (question, answer) in enumerate(story.questions):
        texts = {name: said[name][i] for name in CONDITIONS}
        correct = {name: contains(text, answer) for name, text in texts.items()}
        answers.append(DemoAnswer(question, answer, texts, correct))
    return Told(answers, sum(state.nbytes for state in own.values()))


def short_scores(
    runner: Runner,
    episodes: Sequence[RecallEpisode],
    each: int,
    on_answers: Callable[[int], None] | None = None,
) -> list[Scores]:
    """Scores over the first ``each`` episodes of some cells: 1 to 8 facts, changed, never told."""
    cells = {cell: [e for e in episodes if e.cell == cell][:each] for cell in CELLS}
    cells = {cell: found for cell, found in cells.items() if found}
    return scores(recall(runner, cells, conditions=CONDITIONS, on_answers=on_answers))
