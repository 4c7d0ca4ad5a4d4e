"""LoCoMo (Maharana et al. 2024): questions about conversations that run over months.

The data is CC BY-NC 4.0 and does not come with this package: ``locomo10.json`` of the authors'
repository snap-research/locomo. Prompts and scoring follow their evaluation; the wording is ours.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence

from ...problems import shortened
from ...text.messages import Message
from .datafiles import data_files, raise_duplicates, raise_schema, read_rows
from .task import Count, Material, Question, Unit, first_line, text_of
from .text_scores import f1, stems

MULTI_HOP, TEMPORAL, OPEN_DOMAIN, SINGLE_HOP, ADVERSARIAL = "12345"
CATEGORIES = {
    MULTI_HOP: "1 multi-hop",
    TEMPORAL: "2 temporal",
    OPEN_DOMAIN: "3 open-domain",
    SINGLE_HOP: "4 single-hop",
    ADVERSARIAL: "5 adversarial",
}
NO_ANSWER = "No information available"
UNANSWERED = ("no information available", "not mentioned")
EXPECTED = (
    'Expected LoCoMo: a list of {"sample_id", "conversation": {"speaker_a", "speaker_b", '
    '"session_1": [{"speaker", "text"}], "session_1_date_time", ...}, "qa": [{"question", '
    '"answer" or "adversarial_answer", "category": 1 to 5}]}.'
)

SYSTEM = (
    "You answer questions about a conversation between two people. Use only what was said in it, "
    "and do not make anything up."
)
INTRO = (
    "Below is a conversation between {a} and {b}. It runs over several days, and the date stands "
    "at the head of each session."
)
ASK = (
    "Answer the following question about the conversation between {a} and {b} with a short phrase "
    "of a few words. Use the exact words of the conversation where possible.\n\nQuestion: "
)
ABOUT_DATES = " Use the dates of the conversation to answer with an approximate date."
ABOUT_OPTIONS = " Choose the right answer: (a) {} (b) {}."


class LoCoMo:
    """The task, as ``benchmark.Task`` says."""

    name = "locomo"
    one_line = True
    last_groups: tuple[str, ...] = ("1 to 4", "1 to 5")
    differences: tuple[str, ...] = (
        "Decoding is greedy; the authors sample (temperature 0.4, top-k 10, top-p 0.9).",
        "The prompts ask the same in our words, and questions and answers never write.",
        "All questions of a conversation see the same turns: those that fit beside the longest.",
    )

    def messages(
        self, material: Material, units: Sequence[Unit] | None, question: str, count: Count
    ) -> list[Message]:
        asked = f"{ASK.format(**material.about)}{question}\nShort answer:"
        if units is not None:
            asked = f"{INTRO.format(**material.about)}\n\n{text_of(units)}\n\n{asked}"
        return [_system(SYSTEM), _user(asked)]

    def tellings(self, material: Material, count: Count) -> list[list[Message]]:
        """A message for each session."""
        intro = "From a conversation between {a} and {b}.".format(**material.about)
        heads = dict.fromkeys(unit.head for unit in material.units)
        sessions = [[u for u in material.units if u.head == head] for head in heads]
        return [[_user(f"{intro}\n\n{text_of(session)}")] for session in sessions]

    def wording(self, question: Question) -> str:
        if question.kind == TEMPORAL:
            return question.text + ABOUT_DATES
        if question.kind == ADVERSARIAL:
            return question.text + ABOUT_OPTIONS.format(*question.answers)
        return question.text

    def score(self, question: Question, said: str) -> dict[str, float]:
        said, gold = first_line(said), question.answers
        if question.kind == ADVERSARIAL:
            return {"score": float(says_unanswered(said, gold))}
        if question.kind == MULTI_HOP:
            return {"score": many_f1(said, gold)}
        if question.kind == OPEN_DOMAIN:
            gold = gold.partition(";")[0]
        return {"score": f1(stems(said), stems(gold))}


def many_f1(said: str, gold: str) -> float:
    """For each part of the true answer the best F1 of any part said; their mean."""
    parts = [stems(part) for part in said.split(",")]
    best = [max(f1(part, stems(true)) for part in parts) for true in gold.split(",")]
    return sum(best) / len(best)


def says_unanswered(said: str, options: Sequence[str]) -> bool:
    """Whether an answer is that there is none, in words or as the letter of that option."""
    plain = said.strip().lower()
    if any(phrase in plain for phrase in UNANSWERED):
        return True
    # A letter alone, or one that is marked as such: "a dog" begins with an article.
    letter = re.match(r"(?:\(([ab])\)|([ab])\)|([ab])[.:]?$)", plain)
    if letter is None:
        return False
    return options["ab".index("".join(filter(None, letter.groups())))] == NO_ANSWER


def load_locomo(name: str) -> list[Material]:
    """The conversations with their questions, in the order of the file.

    Args:
        name (str): The file, or a dataset repository or folder that has one .json file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has another schema, or an id twice; what is wrong is listed.
    """
    files = data_files(name, ["*.json"])
    if len(files) > 1:
        listed = ", ".join(file.name for file in files)
        raise ValueError(f"{name!r} has several files: {listed}. Name the one to read.")
    rows = read_rows(files[0])
    raise_schema(files[0], (p for i, row in enumerate(rows) for p in _problems(i, row)), EXPECTED)
    materials = [_material(i, row) for i, row in enumerate(rows)]
    raise_duplicates((m.name, f"{files[0]}: row {i}") for i, m in enumerate(materials))
    return materials


def _material(number: int, row: Mapping) -> Material:
    name = str(row.get("sample_id", number))
    said = row["conversation"]
    questions = tuple(_question(f"{name}/{i}", qa) for i, qa in enumerate(row["qa"]))
    about = {"a": said["speaker_a"], "b": said["speaker_b"]}
    return Material(name, tuple(_units(said)), questions, about)


def _units(conversation: Mapping) -> Iterator[Unit]:
    for session in _sessions(conversation):
        head = f"Date: {conversation[f'{session}_date_time']}"
        for turn in conversation[session]:
            text = f'{turn["speaker"]} said, "{turn["text"]}"'
            if turn.get("blip_caption"):
                text += f" and shared a picture of {turn['blip_caption']}"
            yield Unit(text, head)


def _sessions(conversation: Mapping) -> list[str]:
    """The sessions that were held, in order: some dates have none."""
    found = [name for name in conversation if re.fullmatch(r"session_[0-9]{1,9}", name)]
    return sorted(found, key=lambda name: int(name.removeprefix("session_")))


def _question(name: str, qa: Mapping) -> Question:
    category = str(qa["category"])
    groups = (CATEGORIES[category], *(("1 to 4",) if category != ADVERSARIAL else ()), "1 to 5")
    gold: object = str(qa.get("answer"))
    if category == ADVERSARIAL:
        gold = [NO_ANSWER, str(qa.get("adversarial_answer", qa.get("answer")))]
        random.Random(name).shuffle(gold)  # fixed by conversation and question
    return Question(name, qa["question"], gold, groups, 50, category)


def _problems(number: int, row: Mapping) -> Iterator[str]:
    conversation, qa = row.get("conversation"), row.get("qa")
    if not isinstance(conversation, Mapping) or not isinstance(qa, list):
        yield f"row {number}: no conversation or no qa"
        return
    if not _is_value(row.get("sample_id", "")):
        yield f"row {number}: sample_id {shortened(row['sample_id'])}, expected text"
    yield from (
        f"row {number}: conversation has no {name}"
        for name in ("speaker_a", "speaker_b")
        if not isinstance(conversation.get(name), str)
    )
    sessions = _sessions(conversation)
    if not sessions:
        yield f"row {number}: conversation has no session_1"
    for name in sessions:
        if not isinstance(conversation.get(f"{name}_date_time"), str):
            yield f"row {number}: conversation has no {name}_date_time"
        yield from _turn_problems(f"row {number}: {name}", conversation[name])
    for i, question in enumerate(qa):
        yield from _question_problems(f"row {number}: qa[{i}]", question)


def _turn_problems(where: str, turns: object) -> Iterator[str]:
    if not isinstance(turns, list):
        yield f"{where} is no list"
        return
    for i, turn in enumerate(turns):
        said = isinstance(turn, Mapping) and all(
            isinstance(turn.get(name), str) for name in ("speaker", "text")
        )
        if not said:
            yield f"{where}[{i}] has no speaker or no text"
        elif not isinstance(turn.get("blip_caption", ""), str | None):
            yield f"{where}[{i}]: blip_caption {shortened(turn['blip_caption'])}, expected text"


def _question_problems(where: str, qa: object) -> Iterator[str]:
    if not isinstance(qa, Mapping) or not isinstance(qa.get("question"), str):
        yield f"{where} has no question"
    elif str(qa.get("category")) not in CATEGORIES:
        yield f"{where}: category {shortened(qa.get('category'))}, expected 1 to 5"
    elif qa.get("answer") is None and qa.get("adversarial_answer") is None:
        yield f"{where} has no answer"
    elif str(qa["category"]) != ADVERSARIAL and qa.get("answer") is None:
        yield f"{where}: category {qa['category']} and no answer"
    for name in ("answer", "adversarial_answer"):
        if isinstance(qa, Mapping) and qa.get(name) is not None and not _is_value(qa[name]):
            yield f"{where}: {name} {shortened(qa[name])}, expected text or a number"


def _is_value(value: object) -> bool:
    """Whether a value is a text, or a number that stands for its digits."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _system(text: str) -> Message:
    return {"role": "system", "content": text}


def _user(text: str) -> Message:
    return {"role": "user", "content": text}
