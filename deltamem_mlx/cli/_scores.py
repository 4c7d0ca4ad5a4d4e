"""Tables of `eval` and `demo`: shares of correct answers with their intervals, as text."""

import io
import sys
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.table import Table

NAMES = {"heldout_word": "new words", "heldout_wording": "new wordings"}


def as_text(renderable: RenderableType) -> str:
    """What rich draws: in a terminal with colours and in its width, else as wide as need be."""
    console = Console(file=io.StringIO(), force_terminal=sys.stdout.isatty())
    if not sys.stdout.isatty():
        needed = Measurement.get(console, console.options.update(width=500), renderable)
        console.width = max(console.width, needed.maximum)
    console.print(renderable, highlight=False)
    lines = (line.rstrip() for line in console.file.getvalue().splitlines())
    return "\n".join(lines).strip("\n")


def table(*columns: str, left: int = 1) -> Table:
    """An empty table: the first ``left`` columns are text, the others numbers."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        made.add_column(name, justify="left" if number < left else "right")
    return made


def score_table(cells: Sequence[Mapping], conditions: Sequence[str]) -> Table:
    """The lines that `evals.scores` gives, in per cent."""
    gains = any("gain" in cell for cell in cells)
    newest = any(_newest(cell) for cell in cells)
    made = table(
        *("kind", "facts", "distractors", "questions", *conditions),
        *(["memory − none"] if gains else []),
        *(["newest of answered"] if newest else []),
    )
    for cell in cells:
        row = [NAMES.get(cell["kind"], cell["kind"]), *map(str, _numbers(cell))]
        row += [_share(cell["conditions"].get(name), name) for name in conditions]
        row += [_gain(cell.get("gain"))] if gains else []
        row += [_newest(cell)] if newest else []
        made.add_row(*row)
    return made


def _numbers(cell: Mapping) -> tuple[int, int, int]:
    return cell["facts"], cell["distractors"], cell["questions"]


def _share(score: Mapping[str, float] | None, name: str) -> str:
    if score is None:
        return "–"
    share, low, high = (f"{100 * score[key]:.0f}" for key in ("accuracy", "low", "high"))
    style = "bold green" if name in ("memory", "reloaded") else "bold"
    return f"[{style}]{share}[/] [dim]{low}–{high}[/]"


def _gain(gain: Mapping[str, float] | None) -> str:
    if gain is None:
        return "–"
    value, low, high = (f"{100 * gain[key]:+.0f}" for key in ("difference", "low", "high"))
    return f"[bold]{value}[/] [dim]{low} to {high}[/]"


def _newest(cell: Mapping) -> str:
    count = cell.get("newest", {}).get("memory")
    return f"{count['newest']} of {count['answered']}" if count else ""
