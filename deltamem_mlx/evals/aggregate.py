"""From rows of scored answers to a table: means by group, and differences with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .intervals import paired_bootstrap
from .journal import Row

BASE = "none"


def group_scores(
    rows: Sequence[Row], *, last: Sequence[str] = (), seed: int = 0
) -> list[dict[str, Any]]:
    """A table's lines, one for each metric and group of questions.

    Args:
        rows (Sequence[Row]): A row per question and condition, with ``question_id``,
          ``condition``, ``groups`` and ``scores``.
        last (Sequence[str]): Groups that come last; others are sorted by name.
        seed (int): Of the bootstrap.

    Returns:
        list[dict]: JSON values: ``metric``, ``group``, ``questions``, by condition the mean score
        (``scores``), and for each condition but ``none`` by how much it is above that, on the same
        questions, with a paired bootstrap interval of 95 % (``differences``).
    """
    questions: dict[str, dict[str, Mapping[str, float]]] = {}
    groups: dict[str, list[str]] = {}
    for row in rows:
        questions.setdefault(row["question_id"], {})[row["condition"]] = row["scores"]
        groups[row["question_id"]] = row["groups"]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    metrics = list(dict.fromkeys(metric for row in rows for metric in row["scores"]))
    names = {name for own in groups.values() for name in own}
    order = [*sorted(names - set(last)), *(name for name in last if name in names)]
    lines = []
    for metric in metrics:
        for group in order:
            asked = [
                scores
                for name, scores in questions.items()
                if group in groups[name] and metric in scores[conditions[0]]
            ]
            if asked:
                values = {c: [scores[c][metric] for scores in asked] for c in conditions}
                lines.append({"metric": metric, "group": group, **_line(values, seed)})
    return lines


def _line(values: Mapping[str, Sequence[float]], seed: int) -> dict[str, Any]:
    line: dict[str, Any] = {
        "questions": len(next(iter(values.values()))),
        "scores": {name: float(np.mean(own)) for name, own in values.items()},
        "differences": {},
    }
    if BASE in values:
        for name, own in values.items():
            if name != BASE:
                found = paired_bootstrap(own, values[BASE], seed=seed)
                line["differences"][name] = dict(
                    zip(("difference", "low", "high"), found, strict=True)
                )
    return line
