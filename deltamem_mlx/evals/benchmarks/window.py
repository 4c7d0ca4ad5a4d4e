"""Prompts that fit the context window, and the part that all questions of a material share."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.nn as nn

from ...text.spans import Spans
from ..retrieval import retrieved
from .reader import Reader
from .task import Material, Question, Task, Unit

# Questions whose prompts are compared for what they share must not begin alike by chance.
PROBES = ("", "0", "?")


class Prompts(NamedTuple):
    """The prompts of one material's questions.

    Attributes:
        prefix (Spans): What all have in common: the material, as far as it fits.
        rest (dict[str, list[int]]): Question's id → the tokens that follow.
        kept (int): Units of the material in the prefix.
    """

    prefix: Spans
    rest: dict[str, list[int]]
    kept: int


def context_window(model: nn.Module) -> int | None:
    """How many tokens the model's context may have, as its configuration says."""
    args = getattr(model, "args", None)
    found = getattr(args, "max_position_embeddings", None)
    text = getattr(args, "text_config", None)  # of models that see pictures, too
    if found is None and isinstance(text, dict):
        found = text.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else None


def prompts_in_window(reader: Reader, task: Task, material: Material, window: int) -> Prompts:
    """The prompts of a material's questions, with the newest of it that fits.

    All questions get the same units, so that the longest of them and its answer fit, too.

    Args:
        window (int): Tokens of prompt and answer together.

    Raises:
        ValueError: If a question does not fit even without the material.
    """
    longest = max(material.questions, key=lambda q: reader.count(task.wording(q)) + q.max_tokens)
    units = _newest(reader, task, material, longest, window)

    def render(question: str) -> Spans:
        return reader.prompt(task.messages(material, units, question, reader.count))

    spans = {q.id: render(task.wording(q)) for q in material.questions}
    ids = [s.token_ids for s in spans.values()] + [render(text).token_ids for text in PROBES]
    shared = _shared(ids)
    whole = next(iter(spans.values()))
    rest = {name: s.token_ids[shared:] for name, s in spans.items()}
    return Prompts(_head(whole, shared), rest, len(units))


def prompts_alone(reader: Reader, task: Task, material: Material) -> Prompts:
    """The prompts of a material's questions without the material."""
    rest = {
        q.id: reader.prompt(task.messages(material, None, task.wording(q), reader.count)).token_ids
        for q in material.questions
    }
    return Prompts(Spans([], []), rest, 0)


def prompt_retrieved(
    reader: Reader, task: Task, material: Material, question: Question, *, kept: int, window: int
) -> tuple[Spans, list[int]]:
    """A prompt with as many tokens of the material as its newest units have, found by BM25.

    Args:
        kept (int): How many of the newest units fit.
        window (int): Tokens of prompt and answer together; heads may leave room for fewer units.

    Returns:
        tuple[Spans, list[int]]: The prompt but its last token, and that token.

    Raises:
        ValueError: If the question does not fit with the unit that is found first.
        ModuleNotFoundError: If bm25s (the ``eval`` extra) is not installed.
    """
    texts = [unit.text for unit in material.units]
    sizes = [reader.count(text) for text in texts]
    budget = sum(sizes[len(sizes) - kept :])
    while True:
        chosen = retrieved(texts, sizes, question.text, budget) if kept else []
        units = [material.units[i] for i in chosen]
        messages = task.messages(material, units, task.wording(question), reader.count)
        prompt = reader.prompt(messages)
        over = len(prompt.token_ids) + question.max_tokens - window
        if over <= 0:
            return _head(prompt, len(prompt.token_ids) - 1), prompt.token_ids[-1:]
        if len(chosen) < 2:
            raise ValueError(
                f"The question {question.id!r} needs {over + window} tokens of context with what "
                f"is found for it and its answer, and the window has {window}. Raise --max-context."
            )
        budget = min(budget - 1, sum(sizes[i] for i in chosen) - over)


def _newest(
    reader: Reader, task: Task, material: Material, question: Question, window: int
) -> Sequence[Unit]:
    """The last units with which a prompt on this question fits."""
    room = window - question.max_tokens
    sizes = [reader.count(unit.text) for unit in material.units]

    def excess(start: int) -> int:
        units = material.units[start:]
        messages = task.messages(material, units, task.wording(question), reader.count)
        return len(reader.prompt(messages).token_ids) - room

    start, taken = len(sizes), 0
    while start > 0 and taken + sizes[start - 1] <= room:
        start -= 1
        taken += sizes[start]
    while (over := excess(start)) > 0:
        if start == len(sizes):
            raise ValueError(
                f"The question {question.id!r} needs {over + window} tokens of context with its "
                f"answer, and the window has {window}. Raise --max-context."
            )
        while start < len(sizes) and over > 0:
            over -= sizes[start]
            start += 1
    # Heads went with some of the units, so that one more may fit.
    while start > 0 and excess(start - 1) <= 0:
        start -= 1
    return material.units[start:]


def _shared(lists: Sequence[list[int]]) -> int:
    """How many items all lists begin with: as many as the first and the last of them in order."""
    first, last = min(lists), max(lists)
    pairs = enumerate(zip(first, last, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(last)))


def _head(spans: Spans, end: int) -> Spans:
    sentence_ids = None if spans.sentence_ids is None else spans.sentence_ids[:end]
    return Spans(spans.token_ids[:end], spans.message_ids[:end], sentence_ids)
