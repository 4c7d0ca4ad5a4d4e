"""Tables of `eval` and `demo`: shares of correct answers with their intervals, as text."""

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

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
    """The lines that `evals.aggregate` gives, in per cent: the shares, and what follows from them.

    Args:
        models (Sequence[Mapping]): Results, each with ``model`` and ``cells``.
        conditions (Sequence[str]): In the order of the columns.
    """
    lines = [(result, cell) for result in models for cell in result["cells"]]
    named = ["model"] if len(models) > 1 else []
    shares = table(
        *(*named, "kind", "facts", "distractors", "questions", *conditions), left=1 + len(named)
    )
    for result, cell in lines:
        row = [_share(cell["conditions"].get(name), name) for name in conditions]
        shares.add_row(*_names(result, named), *_cell(cell), str(cell["questions"]), *row)
    if not any("gain" in cell or _newest(cell) for _, cell in lines):
        return [shares]
    gains = table(
        *(*named, "kind", "facts", "distractors", "memory − none", "newest of answered"),
        left=1 + len(named),
    )
    for result, cell in lines:
        row = [_difference(cell.get("gain"), 0), _newest(cell)]
        gains.add_row(*_names(result, named), *_cell(cell), *row)
    return [shares, gains]


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
