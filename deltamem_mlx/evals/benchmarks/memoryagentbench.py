"""MemoryAgentBench (Hu et al. 2025, MIT): questions on texts that are told chunk by chunk.

Data: ``ai-hyz/MemoryAgentBench`` on the Hub, four parquet files, one for each competence.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...files import read_json
from ...problems import shortened
from ...text.messages import Message
from ...text.spans import sentence_chunks
from .agent_scores import KINDS, scores_of
from .datafiles import data_files, raise_schema, read_rows
from .task import Count, Material, Question, Unit

HUB = "ai-hyz/MemoryAgentBench"
FILES = ("data/*.parquet", "entity2id.json")
CHUNK = 4096
EXPECTED = (
    'Expected MemoryAgentBench: rows of {"context": text, "questions": [text], "answers": [[text]],'
    ' "metadata": {"source": text}}, source one of '
    f"{', '.join(kind + '…' for kind in KINDS)}."
)

SYSTEM = "You read a long text in parts, keep it in mind, and answer questions about it."
TELL = "Memorise this part of the text:\n\n{}"
TOLD = "I have memorised it."
ASK = "Answer from the whole text that you memorised, and give only the answer.\n\n{}"
NEWEST = (
    "The text is a list of numbered facts. Where facts contradict each other, the one with the "
    "larger number is the newer and holds.\n\n"
)


class MemoryAgentBench:
    """The task, as ``benchmark.Task`` says."""

    name = "memoryagentbench"
    one_line = False
    last_groups: tuple[str, ...] = ("all",)
    differences: tuple[str, ...] = (
        "Greedy decoding; the prompts are worded by us, and questions and answers never write.",
        "longmemeval counts substring matches (the authors have a model judge), infbench_sum "
        "ROUGE-L.",
    )

    def messages(
        self, material: Material, units: Sequence[Unit] | None, question: str, count: Count
    ) -> list[Message]:
        told = [] if units is None else _turns(units, count)
        return [_message("system", SYSTEM), *told, _message("user", ASK.format(question))]

    def tellings(self, material: Material, count: Count) -> list[list[Message]]:
        """A message for each chunk."""
        return [[turn] for turn in _turns(material.units, count)[::2]]

    def wording(self, question: Question) -> str:
        return NEWEST + question.text if question.kind == "factconsolidation" else question.text

    def score(self, question: Question, said: str) -> dict[str, float]:
        return scores_of(question.kind, said, question.answers)


def load_memoryagentbench(name: str = HUB, sources: Sequence[str] = ()) -> list[Material]:
    """The texts with their questions.

    Movie recommendations are left out where ``entity2id.json`` is not beside the data: the true
    answers are numbers there.

    Args:
        name (str): A .parquet, .json or .jsonl file, a folder with ``data``, or a Hub dataset.
        sources (Sequence[str]): Only sources that begin with one of these; none: all.

    Raises:
        FileNotFoundError: If there is no such file or dataset.
        ValueError: If it has another schema, listing what is wrong, or no such sources.
    """
    files = [file for file in data_files(name, FILES) if file.name != "entity2id.json"]
    materials: list[Material] = []
    read: Counter[str] = Counter()  # rows of a competence, which may lie in several files
    for file in files:
        rows = read_rows(file)
        raise_schema(file, (p for i, row in enumerate(rows) for p in _problems(i, row)), EXPECTED)
        movies = _movies(file)
        competence = file.stem.partition("-")[0]
        for i, row in enumerate(rows, start=read[competence]):
            made = _material(f"{competence}/{i}", row, movies)
            materials += [made] if made is not None else []
        read[competence] += len(rows)
    found = [m for m in materials if not sources or m.about["source"].startswith(tuple(sources))]
    if not found:
        there = ", ".join(sorted({m.about["source"] for m in materials})) or "none"
        raise ValueError(f"{name!r} has no such sources. Those it has: {there}.")
    return found


def _turns(units: Sequence[Unit], count: Count) -> list[Message]:
    """Chunks of whole sentences, each told and acknowledged."""
    chunks: list[list[str]] = []
    size = CHUNK
    for unit in units:
        tokens = count(unit.text)
        if size + tokens > CHUNK:
            chunks.append([])
            size = 0
        chunks[-1].append(unit.text)
        size += tokens
    texts = [TELL.format("".join(chunk).strip()) for chunk in chunks]
    return [
        turn for text in texts for turn in (_message("user", text), _message("assistant", TOLD))
    ]


def _message(role: str, text: str) -> Message:
    return {"role": role, "content": text}


def _material(name: str, row: Mapping, movies: Mapping[str, str]) -> Material | None:
    source = row["metadata"]["source"]
    kind = _kind(source)
    if kind is None or (kind == "recsys_redial" and not movies):
        return None
    competence, tokens = KINDS[kind]
    label = source.rpartition("_")[0] if kind == "factconsolidation" else kind
    groups = (competence, f"{competence} {label}", "all")
    questions = []
    for i, text in enumerate(row["questions"]):
        answers = row["answers"][i]
        answers = [answers] if isinstance(answers, str) else list(answers)
        if kind == "recsys_redial":
            answers = [movies.get(a, a) for a in answers]
        text = _before(row["metadata"], i) + text
        questions.append(Question(f"{name}/{i}", text, answers, groups, tokens, kind))
    units = tuple(Unit(sentence) for sentence in sentence_chunks(row["context"]))
    return Material(name, units, tuple(questions), {"source": source})


def _before(metadata: Mapping, index: int) -> str:
    """What the question needs to be understood: the events so far, its date."""
    parts = []
    events = _at(metadata.get("previous_events"), index)
    if events:
        events = events if isinstance(events, str) else "\n".join(events)
        parts.append(f"These events have happened:\n{events}\n\nWhich of these is next?\n")
    date = _at(metadata.get("question_dates"), index)
    if date:
        parts.append(f"The question is asked on {date}.\n")
    return "".join(parts)


def _at(values: object, index: int) -> Any:
    return values[index] if isinstance(values, list) and index < len(values) else None


def _kind(source: object) -> str | None:
    found = (kind for kind in KINDS if isinstance(source, str) and source.startswith(kind))
    return next(found, None)


def _movies(file: Path) -> dict[str, str]:
    """Number of a movie → its title, from ``entity2id.json`` beside the data."""
    for folder in (file.parent, file.parent.parent):
        path = folder / "entity2id.json"
        if path.is_file():
            numbers = read_json(path)
            return {str(number): _title(name) for name, number in numbers.items()}
    return {}


def _title(entity: str) -> str:
    """<http://dbpedia.org/resource/Heat_(1995_film)> → Heat."""
    name = entity.strip("<>").rpartition("/")[2].replace("_", " ")
    return re.sub(r" \([^)]*\)$", "", name)


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_list(values: object, fits: Callable[[object], bool]) -> bool:
    return isinstance(values, list) and all(map(fits, values))


# What stands before a question, by the name that metadata has for it.
_BEFORE: dict[str, tuple[Callable[[object], bool], str]] = {
    "previous_events": (
        lambda v: _is_text_or_none(v) or _is_list(v, lambda text: isinstance(text, str)),
        "a list: the texts before each question",
    ),
    "question_dates": (_is_text_or_none, "a list: the date of each question"),
}


def _problems(number: int, row: Mapping) -> Iterator[str]:
    metadata = row.get("metadata")
    if not isinstance(row.get("context"), str) or not row["context"].strip():
        yield f"row {number}: no context"
    if not isinstance(metadata, Mapping) or _kind(metadata.get("source")) is None:
        source = metadata.get("source") if isinstance(metadata, Mapping) else None
        yield f"row {number}: source {shortened(source)}"
    elif isinstance(metadata, Mapping):
        yield from (
            f"row {number}: {name} {shortened(metadata[name])}, expected {what}"
            for name, (fits, what) in _BEFORE.items()
            if not (metadata.get(name) is None or _is_list(metadata[name], fits))
        )
    questions, answers = row.get("questions"), row.get("answers")
    if not isinstance(questions, list) or not isinstance(answers, list):
        yield f"row {number}: no questions or no answers"
    elif len(questions) != len(answers):
        yield f"row {number}: {len(questions)} questions and {len(answers)} answers"
    elif not all(isinstance(text, str) for text in questions):
        yield f"row {number}: questions that are not text"
    elif not all(map(_is_answer, answers)):
        yield f"row {number}: answers that are no text and no list of texts"


def _is_answer(answer: object) -> bool:
    texts = answer if isinstance(answer, list) else [answer]
    return bool(texts) and all(isinstance(text, str) for text in texts)
