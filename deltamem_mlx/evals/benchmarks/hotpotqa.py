"""HotpotQA (Yang et al. 2018), distractor setting: questions over ten paragraphs.

Data: ``hotpotqa/hotpot_qa`` on the Hub, or ``hotpot_dev_distractor_v1.json``. CC BY-SA 4.0.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ...text.messages import Message
from .datafiles import data_files, raise_duplicates, raise_schema, read_rows
from .task import Count, Material, Question, Unit, first_line, text_of
from .text_scores import f1, normalised

HUB = "hotpotqa/hotpot_qa"
FILES = ("distractor/validation-*.parquet",)
MAX_TOKENS = 32
CLOSED = ("yes", "no", "noanswer")
EXPECTED = (
    'Expected HotpotQA: rows of {"id", "question", "answer", "type", "level", "context": '
    '{"title": [...], "sentences": [[...], ...]} or [[title, [sentences]], ...]}.'
)

SYSTEM = "You answer questions about paragraphs of an encyclopedia, with a few words and no more."
TELL = "Remember these paragraphs."
ASK = "Answer with a short phrase, or with yes or no.\n\nQuestion: {}\nAnswer:"


class HotpotQA:
    """The task, as ``benchmark.Task`` says."""

    name = "hotpotqa"
    one_line = True
    last_groups: tuple[str, ...] = ("all",)
    differences: tuple[str, ...] = (
        "Greedy decoding; the prompts are worded by us, and questions and answers never write.",
    )

    def messages(
        self, material: Material, units: Sequence[Unit] | None, question: str, count: Count
    ) -> list[Message]:
        asked = ASK.format(question)
        if units is not None:
            asked = f"{text_of(units)}\n\n{asked}"
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]

    def tellings(self, material: Material, count: Count) -> list[list[Message]]:
        """All paragraphs as one message."""
        return [[{"role": "user", "content": f"{TELL}\n\n{text_of(material.units)}"}]]

    def wording(self, question: Question) -> str:
        return question.text

    def score(self, question: Question, said: str) -> dict[str, float]:
        words, true = normalised(first_line(said)), normalised(str(question.answers))
        same = words == true
        closed = any(" ".join(w) in CLOSED for w in (words, true))
        return {"exact match": float(same), "F1": float(same) if closed else f1(words, true)}


def load_hotpotqa(name: str = HUB) -> list[Material]:
    """The questions, each with its paragraphs, in the order of the data.

    Args:
        name (str): A .json, .jsonl or .parquet file, a folder with ``distractor``, or a Hub
          dataset.

    Raises:
        FileNotFoundError: If there is no such file or dataset.
        ValueError: If it has another schema, or an id twice; what is wrong is listed.
    """
    materials, places = [], []
    for file in data_files(name, FILES):
        rows = read_rows(file)
        raise_schema(file, (p for i, row in enumerate(rows) for p in _problems(i, row)), EXPECTED)
        made = [_material(row) for row in rows]
        places += [(m.name, f"{file}: row {i}") for i, m in enumerate(made)]
        materials += made
    raise_duplicates(places)
    return materials


def _material(row: Mapping) -> Material:
    name = str(row.get("id", row.get("_id")))
    groups = (f"level {row['level']}", f"type {row['type']}", "all")
    question = Question(name, row["question"], row["answer"], groups, MAX_TOKENS)
    units = tuple(
        Unit(sentence.strip(), title)
        for title, sentences in _paragraphs(row["context"])
        for sentence in sentences
        if sentence.strip()
    )
    return Material(name, units, (question,), {})


def _paragraphs(context: Any) -> list[tuple[str, list[str]]]:
    if isinstance(context, Mapping):
        return list(zip(context["title"], context["sentences"], strict=True))
    return [(title, sentences) for title, sentences in context]


def _problems(number: int, row: Mapping) -> Iterator[str]:
    for name in ("question", "answer", "type", "level"):
        if not isinstance(row.get(name), str):
            yield f"row {number}: no {name}"
    if not isinstance(row.get("id", row.get("_id")), str):
        yield f"row {number}: no id"
    try:
        paragraphs = _paragraphs(row["context"])
    except (KeyError, TypeError, ValueError):
        yield f"row {number}: context has no titles with sentences"
        return
    if not all(isinstance(sentences, list) for _, sentences in paragraphs):
        yield f"row {number}: context has no titles with sentences"
        return
    texts = [text for title, sentences in paragraphs for text in (title, *sentences)]
    if not texts or not all(isinstance(text, str) for text in texts):
        yield f"row {number}: context has no titles with sentences"
