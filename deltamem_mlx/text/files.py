"""Files that are told to the memory: text, or messages as JSON."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ..files import read_text
from ..problems import Problem, kind_of, raise_problems
from .exports import exported_messages
from .json_rows import JSON_SUFFIXES, json_rows
from .messages import Message, message_problems

EXPECTED = (
    'Expected {"role": "user", "content": "text"} per line of a .jsonl file, or a list of them in '
    'a .json file; {"messages": [...]} stands for its messages. Exports of ChatGPT '
    "(conversations.json) and of mem0 will do as well."
)
BLANK_LINES = re.compile(r"\n\s*\n")


def holds_messages(path: Path) -> bool:
    """Whether a file is one of messages, by its name, rather than of plain text."""
    return path.suffix.lower() in JSON_SUFFIXES


def read_messages(path: Path) -> list[Message]:
    """The messages in a file: those of a .json or .jsonl, or a text's paragraphs, one each.

    JSON may be an export, as ``exported_messages`` knows them.

    Raises FileNotFoundError; ValueError for a file that is empty, no UTF-8 text, or holds something
    that is no message: every such place is named by file, line and field.
    """
    messages: list[Message] = []
    problems: list[str] = []
    if holds_messages(path):
        for where, row in json_rows(path):
            for field, value in _within(row):
                found = [value] if isinstance(value, Problem) else message_problems([value])
                problems += [_said(where, field, problem) for problem in found]
                if isinstance(value, Mapping):
                    messages.append(dict(value))
        raise_problems(problems, f"{path} cannot be remembered", EXPECTED)
    else:
        messages = text_messages(read_text(path))
    if not messages:
        raise ValueError(f"{path} is empty; expected something to remember.")
    return messages


def text_messages(text: str) -> list[Message]:
    """The paragraphs of a text, each a message of the user's."""
    parts = (part.strip() for part in BLANK_LINES.split(text))
    return [{"role": "user", "content": part} for part in parts if part]


def _within(row: object) -> Iterator[tuple[str, object]]:
    """(field, value) for each thing in a row that should be a message, or a `Problem`."""
    exported = exported_messages(row)
    if exported is not None:
        yield from (("", message) for message in exported)
        return
    field = "messages" if isinstance(row, Mapping) and "messages" in row else ""
    listed = row["messages"] if isinstance(row, Mapping) and field else row
    if isinstance(listed, list):
        yield from ((f"{field}[{i}]", value) for i, value in enumerate(listed))
        if not listed:
            yield field, Problem("", ValueError, "an empty list")
    elif field:
        yield field, Problem("", TypeError, f"{kind_of(listed)} (expected a list)")
    else:
        yield "", listed


def _said(where: str, field: str, problem: Problem) -> str:
    place = f"{field}{problem.field.removeprefix('messages[0]')}".lstrip(".")
    return ": ".join(filter(None, (where, place, problem.what)))
