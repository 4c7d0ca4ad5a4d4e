"""The folder of an evaluation: answers as they come, so that an interrupted one goes on.

``run.json`` holds the settings that decide the answers, ``questions.jsonl`` a line per question,
``result.json`` the table, written at the end.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import WriteError, checked_file, json_lines, read_json, write_text
from ..problems import shortened

RUN, QUESTIONS, RESULT = "run.json", "questions.jsonl", "result.json"
MEMORIES = "memories"  # a folder

Row = dict[str, Any]


class Journal:
    """The answers of a run; in memory only, if there is no folder.

    Args:
        folder (Path): Made if it is missing.
        settings (Mapping[str, Any]): JSON values that decide the answers.

    Attributes:
        rows (dict[int | str, Row]): ``id`` of an answer → its row, what was there before included.

    Raises:
        ValueError: If the folder holds a run with other settings; all differences are listed.
    """

    def __init__(self, folder: Path | None, settings: Mapping[str, Any]):
        self.folder = folder
        self.rows: dict[int | str, Row] = {}
        if folder is None:
            return
        if (folder / RUN).exists():
            _check_same(folder, read_json(folder / RUN), settings)
            self.rows = _read_rows(folder / QUESTIONS)
        elif there := [name for name in (QUESTIONS, RESULT, MEMORIES) if (folder / name).exists()]:
            raise ValueError(f"{folder} holds {there[0]} but no {RUN}: give another folder.")
        else:
            write_text(folder / RUN, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")

    def add(self, rows: Sequence[Row]) -> None:
        """Keep rows, each with its ``id``; those that are there already stay as they are.

        Raises:
            WriteError: If they cannot be written: a full disk, a protected file.
        """
        new = [row for row in rows if row["id"] not in self.rows]
        if self.folder is not None and new:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in new)
            _append(self.folder / QUESTIONS, text)
        self.rows |= {row["id"]: row for row in new}

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write the result beside the answers."""
        if self.folder is not None:
            write_result(self.folder, result)


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Write a result as a folder's ``result.json``."""
    write_text(folder / RESULT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise WriteError(
            f"{path} could not be written: {error.strerror or error}. The answers before stay; the "
            "same command goes on with them."
        ) from error


def _check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    now = json.loads(json.dumps(now))
    different = [
        f"{name}: {shortened(before.get(name), 200)} there, {shortened(now.get(name), 200)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if different:
        lines = "\n  ".join(different)
        raise ValueError(
            f"{folder} holds another evaluation:\n  {lines}\nGive the same settings to go on with "
            "it, or another folder."
        )


def _read_rows(path: Path) -> dict[int | str, Row]:
    """The rows in a file, from which half a line at the end (of a killed run) is cut off."""
    if not path.exists():
        return {}
    data = checked_file(path).read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        os.truncate(path, whole)
    rows: dict[int | str, Row] = {}
    for number, row, wrong in json_lines(path):
        if not isinstance(row, dict) or not isinstance(row.get("id"), int | str):
            raise ValueError(
                f"{path}:{number} is damaged: {wrong or 'no row of an evaluation'}. Delete the "
                "line to answer that question again, or give another folder."
            )
        rows[row["id"]] = row
    return rows
