"""Tables of `eval` and `demo`: shares of correct answers with their intervals, as text."""

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

SHARES, DIFFERENCES = 5, 3  # columns of a table, so that it is not wider than 100 characters
NAMES = {"heldout_word": "new words", "heldout_wording": "new wordings"}


def as_text(renderable: RenderableType) -> str:
    """What rich draws: in a terminal with colours and in its width, else as wide as need be."""
    sink = io.StringIO()
    console = Console(file=sink, force_terminal=sys.stdout.isatty())
    if not sys.stdout.isatty():
        needed = Measurement.get(console, console.options.update(width=500), renderable)
        console.width = max(console.width, needed.maximum)
    console.print(renderable, highlight=False)
    lines = (line.rstrip() for line in sink.getvalue().splitlines())
    return "\n".join(lines).strip("\n")


def table(*columns: str, left: int = 1) -> Table:
    """An empty table: the first ``left`` columns are text, the others numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number < left else "right")
    return made


def score_tables(models: Sequence[Mapping], conditions: Sequence[str]) -> list[Table]:
    """The lines that `evals.recall.scores` gives, in per cent: shares, and what follows from them.

    Args:
        models (Sequence[Mapping]): Results, each with ``model`` and ``cells``.
        conditions (Sequence[str]): In the order of the columns.
    """
    lines = [(result, cell) for result in models for cell in result["cells"]]
    named = ["model"] if len(models) > 1 else []
    tables = []

    def add(columns: Sequence[str], cells: Callable[[Mapping], list[str]]) -> None:
        made = table(*(*named, "kind", "facts", "distractors", *columns), left=1 + len(named))
        for result, cell in lines:
            if any(row := cells(cell)):
                made.add_row(*_names(result, named), *_cell(cell), *row)
        if made.row_count:
            tables.append(made)

    for some in _few(conditions, SHARES):
        add(["questions", *some], partial(_share_row, conditions=some))
    compared = [n for n in conditions if any(_compared(cell, n) for _, cell in lines)]
    for some in _few(compared, DIFFERENCES):
        add([f"memory − {name}" for name in some], partial(_difference_row, conditions=some))
    if any(_newest(cell) for _, cell in lines):
        add(["newest of answered"], lambda cell: [_newest(cell)])
    plain = [n for n in conditions if any(n in cell.get("as_plain", {}) for _, cell in lines)]
    for some in _few(plain, DIFFERENCES):
        add([f"{n} as plain" for n in some], partial(_as_plain_row, conditions=some))
    return tables


def _few(names: Sequence[str], most: int) -> list[Sequence[str]]:
    """Names in as few runs of alike length as hold at most so many: a table has 100 columns."""
    runs = -(-len(names) // most)
    size = -(-len(names) // max(1, runs))
    return [names[i : i + size] for i in range(0, len(names), size)] if names else []


def _share_row(cell: Mapping, conditions: Sequence[str]) -> list[str]:
    shares = [_share(cell["conditions"].get(name), name) for name in conditions]
    return [str(cell["questions"]), *shares]


def _compared(cell: Mapping, condition: str) -> Mapping[str, float] | None:
    """By how much the memory is above a condition."""
    if condition == "none":
        return cell.get("gain")
    return cell.get("differences", {}).get(condition)


def _difference_row(cell: Mapping, conditions: Sequence[str]) -> list[str]:
    return [_difference(_compared(cell, name), 0) for name in conditions]


def _as_plain_row(cell: Mapping, conditions: Sequence[str]) -> list[str]:
    found = cell.get("as_plain", {})
    return [_share(found[name], name) if name in found else "" for name in conditions]


def group_tables(
    models: Sequence[Mapping], conditions: Sequence[str]
) -> Iterator[tuple[str, Table]]:
    """Yields (title, table) for each metric of the lines that `evals.group_scores` gives.

    Args:
        models (Sequence[Mapping]): Results, each with ``model`` and ``groups``.
        conditions (Sequence[str]): In the order of the columns.
    """
    named = ["model"] if len(models) > 1 else []
    others = [name for name in conditions if name != "none"] if "none" in conditions else []
    for metric in dict.fromkeys(line["metric"] for line in models[0]["groups"]):
        made = table(
            *(*named, "questions on", "n", *conditions, *(f"{name} − none" for name in others)),
            left=1 + len(named),
        )
        groups = dict.fromkeys(x["group"] for m in models for x in m["groups"])
        for group in groups:
            for result in models:
                for line in result["groups"]:
                    if (line["metric"], line["group"]) == (metric, group):
                        made.add_row(
                            *_names(result, named),
                            escape(group),
                            str(line["questions"]),
                            *(_mean(line["scores"][name], name) for name in conditions),
                            *(_difference(line["differences"][name], 1) for name in others),
                        )
        yield metric, made


def groups_text(
    result: Mapping,
    conditions: Sequence[str],
    says: Mapping[str, str],
    sentences: Sequence[str] = (),
) -> str:
    """The tables of a result with ``groups``, and what its columns mean.

    Args:
        result (Mapping): Of one model, or of several under ``models``.
        conditions (Sequence[str]): In the order of the columns.
        says (Mapping[str, str]): What each condition is.
        sentences (Sequence[str]): More to say below.
    """
    tables = group_tables(result.get("models", [result]), conditions)
    lines = [f"{title}\n\n{as_text(made)}\n" for title, made in tables]
    lines.append("Times 100. Differences with paired bootstrap intervals of 95 %.")
    lines += [f"  {name}: {meaning}" for name, meaning in says.items()]
    return "\n".join([*lines, *(f"  {sentence}" for sentence in sentences)])


def _names(result: Mapping, named: Sequence[str]) -> list[str]:
    return [escape(Path(result["model"]).name)] if named else []


def _cell(cell: Mapping) -> tuple[str, ...]:
    return NAMES.get(cell["kind"], cell["kind"]), str(cell["facts"]), str(cell["distractors"])


def _share(score: Mapping[str, float] | None, name: str) -> str:
    if score is None:
        return "–"
    share, low, high = (f"{100 * score[key]:.0f}" for key in ("accuracy", "low", "high"))
    return f"[{_style(name)}]{share}[/] [dim]{low}–{high}[/]"


def _mean(score: float, name: str) -> str:
    return f"[{_style(name)}]{100 * score:.1f}[/]"


def _style(condition: str) -> str:
    return "bold green" if condition in ("memory", "reloaded") else "bold"


def _difference(found: Mapping[str, float] | None, digits: int) -> str:
    if found is None:
        return "–"
    keys = ("difference", "low", "high")
    value, low, high = (f"{100 * found[key]:+.{digits}f}" for key in keys)
    return f"[bold]{value}[/] [dim]{low} to {high}[/]"


def _newest(cell: Mapping) -> str:
    count = cell.get("newest", {}).get("memory")
    return f"{count['newest']} of {count['answered']}" if count else ""
