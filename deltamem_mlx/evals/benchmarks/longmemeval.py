"""LongMemEval (Wu et al. 2025, MIT): questions about months of chats with an assistant.

Data: ``longmemeval_oracle.json``, ``longmemeval_s_cleaned.json`` or ``longmemeval_m_cleaned.json``
of ``xiaowu0162/longmemeval-cleaned`` on the Hub: each question has a history of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from ...problems import shortened
from ...text.messages import Message
from ..recall.correct import says_unknown
from .datafiles import data_files, raise_duplicates, raise_schema, read_rows
from .task import Count, Material, Question, Unit, text_of
from .text_scores import f1, holds, normalised

FILES = ("longmemeval_s*.json",)
TYPES = (
    "single-session-user",
    "single-session-assistant",
    "single-session-preference",
    "multi-session",
    "temporal-reasoning",
    "knowledge-update",
)
PREFERENCE, ABSTENTION = "single-session-preference", "abstention"
UNANSWERABLE = "_abs"  # how the ids of questions end that have no answer
EXPECTED = (
    'Expected LongMemEval: a list of {"question_id", "question_type", "question", "answer", '
    '"question_date", "haystack_dates": [text], "haystack_sessions": [[{"role", "content"}]]}, '
    f"question_type one of {', '.join(TYPES)}."
)

SYSTEM = (
    "You are an assistant that has talked to a user on several days. You answer from what was said "
    "then, and say that you do not know where it was not."
)
INTRO = "Below are earlier chats between you and the user, each with its date."
TELL = "An earlier chat between you and the user:\n\n{}"
ASK = (
    "Today is {date}. Answer in a few words from the earlier chats. If something changed, the "
    "newest holds. If it was not mentioned, say that you do not know.\n\nQuestion: {question}"
)


class LongMemEval:
    """The task, as ``task.Task`` says."""

    name = "longmemeval"
    one_line = False
    last_groups: tuple[str, ...] = (ABSTENTION, "all")
    differences: tuple[str, ...] = (
        "An answer is right if it holds the true one word for word; the authors ask a model.",
        "abstention counts answers that say so; its questions are in no other line but all.",
        "single-session-preference has the token F1 with the rubric, and is not in all.",
        "Greedy decoding; the prompts are worded by us, and questions and answers never write.",
    )

    def messages(
        self, material: Material, units: Sequence[Unit] | None, question: str, count: Count
    ) -> list[Message]:
        asked = ASK.format(date=material.about["date"], question=question)
        if units is not None:
            asked = f"{INTRO}\n\n{text_of(units)}\n\n{asked}"
        return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": asked}]

    def tellings(self, material: Material, count: Count) -> list[list[Message]]:
        """A message for each chat."""
        chats = groupby(material.units, key=lambda unit: unit.head)
        texts = [TELL.format(text_of(list(units))) for _, units in chats]
        return [[{"role": "user", "content": text}] for text in texts]

    def wording(self, question: Question) -> str:
        return question.text

    def score(self, question: Question, said: str) -> dict[str, float]:
        if question.kind == ABSTENTION:
            return {"score": float(says_unknown(said))}
        words, true = normalised(said), normalised(question.answers)
        overlap = f1(words, true)
        score = overlap if question.kind == PREFERENCE else float(holds(words, true))
        return {"score": score, "F1": overlap}


def load_longmemeval(name: str) -> list[Material]:
    """The questions, each with its history as a material of its own.

    Args:
        name (str): The file, or a dataset repository or folder, of which longmemeval_s is read.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another schema, or an id twice; what is wrong is listed.
    """
    files = data_files(name, FILES)
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{name!r} has several files: {listed}. Name the one to read.")
    rows = read_rows(files[0])
    raise_schema(files[0], (p for i, row in enumerate(rows) for p in _problems(i, row)), EXPECTED)
    raise_duplicates((row["question_id"], f"{files[0]}: row {i}") for i, row in enumerate(rows))
    return [_material(row) for row in rows]


def _material(row: Mapping) -> Material:
    name = row["question_id"]
    kind = ABSTENTION if name.endswith(UNANSWERABLE) else row["question_type"]
    groups = (kind,) if kind == PREFERENCE else (kind, "all")
    question = Question(name, row["question"], str(row["answer"]), groups, 50, kind)
    about = {"date": row["question_date"]}
    return Material(name, tuple(_units(row)), (question,), about)


def _units(row: Mapping) -> Iterator[Unit]:
    """The turns, chats in the order of their dates: those begin with year, month and day."""
    chats = zip(row["haystack_dates"], row["haystack_sessions"], strict=True)
    for date, turns in sorted(chats, key=lambda chat: chat[0]):
        for turn in turns:
            yield Unit(f"{turn['role'].capitalize()}: {turn['content']}", f"Date: {date}")


def _problems(number: int, row: Mapping) -> Iterator[str]:
    where = f"row {number}"
    for name in ("question_id", "question", "question_date"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            yield f"{where}: {name} {shortened(row.get(name))}, expected text"
    if row.get("question_type") not in TYPES:
        yield f"{where}: question_type {shortened(row.get('question_type'))}"
    answer = row.get("answer")
    if not isinstance(answer, str | int | float) or isinstance(answer, bool):
        yield f"{where}: answer {shortened(answer)}, expected text or a number"
    dates, sessions = row.get("haystack_dates"), row.get("haystack_sessions")
    if not isinstance(dates, list) or not all(isinstance(date, str) for date in dates):
        yield f"{where}: haystack_dates {shortened(dates)}, expected a list of texts"
    elif not isinstance(sessions, list) or not any(sessions):
        yield f"{where}: haystack_sessions {shortened(sessions)}, expected a list of chats"
    elif len(dates) != len(sessions):
        yield f"{where}: {len(dates)} haystack_dates and {len(sessions)} haystack_sessions"
    else:
        for i, session in enumerate(sessions):
            if not isinstance(session, list) or not all(map(_is_turn, session)):
                yield f"{where}: haystack_sessions[{i}] is no list of turns with role and content"


def _is_turn(turn: object) -> bool:
    return isinstance(turn, Mapping) and all(
        isinstance(turn.get(name), str) for name in ("role", "content")
    )
