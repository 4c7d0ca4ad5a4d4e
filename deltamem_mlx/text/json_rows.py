"""What .json and .jsonl files hold, one thing after another."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ..files import json_lines, parse_json, read_text
from ..problems import Problem

JSON_SUFFIXES = (".jsonl", ".json")

Rows = Iterator[tuple[str, object]]


def json_rows(path: Path) -> Rows:
    """Yields (where, value) for each line of a .jsonl file, or item of a list in a .json file.

    What is not JSON is a `Problem`; a .json file without a list is one value.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If its name ends otherwise, or it is no text.
    """
    suffix = path.suffix.lower()
    if suffix not in JSON_SUFFIXES:
        raise ValueError(f"{str(path)!r} is not a .jsonl or .json file.")
    if suffix == ".jsonl":
        for line in json_lines(path):
            wrong = Problem("", ValueError, line.wrong) if line.wrong else None
            yield f"{path}:{line.number}", wrong or line.value
        return
    text = read_text(path)
    try:
        value = parse_json(text)
    except ValueError as error:
        value = Problem("", ValueError, str(error))
    if isinstance(value, list):
        yield from numbered(value, f"{path}: item")
    else:
        yield str(path), value


def numbered(rows: Iterable[object], what: str) -> Rows:
    """Yields each row with its number, from 1, after ``what`` it is."""
    for number, row in enumerate(rows, start=1):
        yield f"{what} {number}", row
