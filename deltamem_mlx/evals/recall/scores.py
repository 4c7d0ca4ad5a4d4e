"""From rows of answers to a table: shares of correct answers, and how sure they are."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from ..intervals import paired_bootstrap, wilson
from ..journal import Row
from .episodes import Cell

Scores = dict[str, Any]


def scores(rows: Sequence[Row], *, seed: int = 0) -> list[Scores]:
    """A table's lines, one for each kind, number of facts and number of distractors.

    Args:
        rows (Sequence[Row]): As ``recall`` gives them: those of a cell are next to each other.
        seed (int): Of the bootstrap.

    Returns:
        list[Scores]: JSON values: the cell, ``questions``, and by condition ``correct``,
        ``accuracy``, ``low``, ``high`` (Wilson, 95 %). ``gain``: by how much the accuracy with the
        memory is above that without, with a paired bootstrap interval; ``differences``: the same
        for the other conditions. ``newest``: of the changed facts answered with either value, how
        many with the newest. ``as_plain``: of the facts that were never told, the share that is
        answered as by the plain model, like ``conditions``.
    """
    return [_line(cell, list(own), seed) for cell, own in groupby(rows, key=_cell)]


def _cell(row: Row) -> Cell:
    return Cell(row["kind"], row["facts"], row["distractors"])


def _line(cell: Cell, rows: Sequence[Row], seed: int) -> Scores:
    conditions = [name for name in rows[0]["correct"] if all(name in r["correct"] for r in rows)]
    line: Scores = {
        **cell._asdict(),
        "questions": len(rows),
        "conditions": {
            name: _accuracy(row["correct"][name] for row in rows) for name in conditions
        },
    }
    if "memory" in conditions:
        others = [name for name in conditions if name not in ("memory", "none", "reloaded")]
        line["differences"] = {name: _difference(rows, name, seed) for name in others}
        if "none" in conditions:
            line["gain"] = _difference(rows, "none", seed)
    if all("as_plain" in row for row in rows):
        line["as_plain"] = {
            name: _accuracy(row["as_plain"][name] for row in rows)
            for name in conditions
            if name != "none"
        }
    if cell.kind == "updated":
        line["newest"] = {name: _newest(rows, name) for name in conditions}
    return line


def _difference(rows: Sequence[Row], condition: str, seed: int) -> dict[str, float]:
    """By how much the memory is above a condition."""
    pairs = [[row["correct"][name] for row in rows] for name in ("memory", condition)]
    return dict(
        zip(("difference", "low", "high"), paired_bootstrap(*pairs, seed=seed), strict=True)
    )


def _accuracy(correct: Iterable[bool]) -> dict[str, float]:
    marks = list(correct)
    share = wilson(sum(marks), len(marks))
    return {"correct": sum(marks), "accuracy": share.value, "low": share.low, "high": share.high}


def _newest(rows: Sequence[Row], condition: str) -> dict[str, int]:
    newest = sum(row["correct"][condition] for row in rows)
    old = sum(row["said_old"][condition] and not row["correct"][condition] for row in rows)
    return {"newest": newest, "answered": newest + old}
