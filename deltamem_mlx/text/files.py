"""Files that are told to the memory: text, or messages as JSON."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from deltamem_mlx.problems import first_few
from deltamem_mlx.text.messages import Message, kind_of, message_problems

EXPECTED = (
    'Expected {"role": "user", "content": "text"} per line of a .jsonl file, or a list of them in '
    'a .json file; {"messages": [...]} stands for its messages.'
)
MOST = 10
BLANK_LINES = re.compile(r"\n\s*\n")


def read_messages(path: Path) -> list[Message]:
    """The messages in a file: those of a .json or .jsonl, or a text's paragraphs, one each.

    Raises FileNotFoundError; ValueError for a file that is empty, not UTF-8, or holds something
    that is no message: every such place is named by file, line and field.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: {error.reason}, byte {error.start}."
        ) from error
    if not text.strip():
        raise ValueError(f"{path} is empty; expected something to remember.")
    if path.suffix not in (".json", ".jsonl"):
        paragraphs = (part.strip() for part in BLANK_LINES.split(text))
        return [{"role": "user", "content": part} for part in paragraphs if part]
    messages: list[Message] = []
    problems: list[str] = []
    for where, value in _values(path, text, problems):
        found = message_problems([value])
        problems += [f"{where}{p.field.removeprefix('messages[0]')}: {p.what}" for p in found]
        messages.append(value)
    if problems:
        lines = "\n  ".join(first_few(problems, MOST))
        raise ValueError(f"{path} cannot be remembered:\n  {lines}\n{EXPECTED}")
    return [dict(message) for message in messages]


def _values(path: Path, text: str, problems: list[str]) -> Iterator[tuple[str, object]]:
    """(where, value) for each thing that should be a message."""
    pieces = [("", text)]
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), start=1)
        pieces = [(f"line {number}", line) for number, line in lines if line.strip()]
    for where, piece in pieces:
        try:
            value = json.loads(piece)
        except (ValueError, RecursionError) as error:
            problems.append(_not_json(where, error))
            continue
        yield from _within(where, value, problems)


def _within(where: str, value: object, problems: list[str]) -> Iterator[tuple[str, object]]:
    field = ".messages" if isinstance(value, dict) and "messages" in value else ""
    listed = value["messages"] if field else value
    if isinstance(listed, list):
        yield from ((f"{where}{field}[{i}]", message) for i, message in enumerate(listed))
        if not listed:
            problems.append(f"{where}{field or ' it'}: an empty list")
    elif field:
        problems.append(f"{where}{field}: {kind_of(listed)} (expected a list)")
    else:
        yield where, listed


def _not_json(where: str, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        place = where or f"line {error.lineno}"
        return f"{place}: not valid JSON: {error.msg}, column {error.colno}"
    return f"{where or 'it'}: not valid JSON: {error}"
