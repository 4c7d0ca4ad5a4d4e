"""The picture of a trace. Needs matplotlib: the extra ``plot``."""

import textwrap
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ..inspection.trace import Trace
from .columns import one_line
from .figures import GREY, abreast, drawn, figure, stacked, whole_numbers

_LIGHT_BLUE, _LIGHT_GREEN, _LIGHT_GREY = "#9dbfe0", "#86cdb5", "#c4c4c4"
_DASHES = ("-", (0, (6, 1.5)), (0, (2, 1)))  # so that neighbours differ in grey as well
_NAMED = 8  # tokens whose words stand at their spikes
_CURVES = 6
_RULED = 24  # with more turns the lines between them would hide what is there
_LISTED_LINES, _LISTED_WIDTH = 22, 54
_COLUMNS, _ROWS = 128, 16  # of the text that is shown token by token


class Laid(NamedTuple):
    """A part of a token's text, and where it stands in the text that is shown."""

    token: int
    column: int
    row: int
    part: str


@drawn
def draw_trace(trace: Trace, name: str, *, by_token: bool = False) -> Figure:
    """Write gates, movement and, of several turns, retention over the tokens; and how alike the
    states are.

    Below them the text, each token shaded by its write gate, where there is room for all of it;
    with ``by_token`` its beginning where there is not.
    """
    laid = _laid_out(trace.shown)
    fits = trace.granularity == "token" and laid[-1].token == len(trace.pieces) - 1
    laid = laid if by_token or fits else []
    below = 0.6 + 0.2 * (laid[-1].row + 1) if laid else 0
    retains = bool(_chosen(trace)[0])  # a single turn has none after it
    height = 9 if retains else 7.6
    picture = figure(13, height + below)
    count = len(trace.turns)
    picture.suptitle(
        f"What {name} does to the memory: {len(trace.pieces):,} tokens, "
        f"{count} {trace.kind}{'s' * (count != 1)}",
        fontsize=13,
    )
    charts, *text = stacked(picture, [height, below] if laid else [1])
    left, right = abreast(charts, [1.75, 1])
    heights = [1, 0.9, 1.5] if retains else [1, 0.9]
    panels = list(left.subplots(len(heights), 1, sharex=True, height_ratios=heights))
    gates, moved, *kept = panels
    _draw_gates(gates, trace)
    _draw_moved(moved, trace)
    for axes in kept:
        _draw_retention(axes, trace)
    panels[-1].set_xlabel(panels[-1].get_xlabel() or "tokens read")
    for axes in panels:
        _turn_bands(axes, trace)
        axes.set_xlim(0, len(trace.pieces))
        axes.tick_params(labelbottom=True)
        whole_numbers(axes)
    matrix, listed = right.subplots(2, 1, height_ratios=[1.5, 1])
    _draw_contrast(matrix, trace)
    _list_turns(listed, trace)
    for part in text:
        _draw_text(part.subplots(), trace, laid)
    return picture


def _draw_gates(axes: Axes, trace: Trace) -> None:
    beta = trace.write.mean(axis=1)
    axes.stairs(beta, fill=True, color=_LIGHT_BLUE, label="each token")
    for start, turn in zip(trace.starts, trace.turns, strict=True):
        mean = beta[start : turn.end].mean()
        axes.plot([start, turn.end], [mean, mean], color="black", lw=1.8)
    axes.plot([], [], color="black", lw=1.8, label=f"mean of the {trace.kind}")
    axes.set(
        title="How strongly each token is written",
        ylabel="0: not at all, 1: fully\n(write gate β, mean of layers)",
    )
    axes.set_ylim(0, beta.max() * 1.4)
    for i in _spikes(trace, beta):
        axes.annotate(one_line(trace.shown[i].strip(), 14), (i + 0.5, beta[i]), (0, 2),
                      textcoords="offset points", ha="center", va="bottom", fontsize=9)  # fmt: skip
    _legend_above(axes)


def _spikes(trace: Trace, beta: np.ndarray) -> list[int]:
    """The tokens that are written most, if they stand out, and no two too near to be named."""
    near, found = len(beta) // 20, list[int]()
    for i in np.argsort(-beta, kind="stable"):
        if len(found) == _NAMED or beta[i] < 1.5 * np.median(beta):
            break
        if trace.shown[i].strip() and all(abs(i - other) > near for other in found):
            found.append(int(i))
    return found


def _legend_above(axes: Axes) -> None:
    """The legend in the title's line, where no data are."""
    axes.legend(ncols=3, loc="lower right", bbox_to_anchor=(1.01, 0.98), borderaxespad=0)


def _draw_moved(axes: Axes, trace: Trace) -> None:
    axes.stairs(trace.moved, [0, *trace.steps], fill=True, color=_LIGHT_GREEN)
    length = len(trace.pieces) / len(trace.steps)
    every = "each token" if length < 1.5 else f"about {length:.0f} tokens"
    axes.set(title="How far it moves the memory", ylabel=f"part of its size,\nover {every}")
    axes.set_ylim(0, max(0.1, min(1.25, float(trace.moved[1:].max(initial=0.1)) * 1.3)))


def _draw_retention(axes: Axes, trace: Trace) -> None:
    chosen, others, little = _chosen(trace)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(chosen)))
    for row in others:
        axes.plot(*_curve(trace, row), color=_LIGHT_GREY, lw=0.8, zorder=1)
    lasts, most = [], 1.0
    for (row, _), color, dashes in zip(chosen, colors, cycle(_DASHES), strict=False):
        marks, left = _curve(trace, row)
        axes.plot(marks, left, color=color, lw=2.0, ls=dashes)
        axes.plot(marks[0], left[0], "o", color=color, ms=5, clip_on=False, zorder=3)
        lasts.append(float(left[-1]))
        most = max(most, float(left.max()))
    low = min([-0.05, *(1.1 * last for last in lasts)])
    high = max(1.25, most * 1.1)
    places = _spread(lasts, (high - low) * 0.07)
    for (_, label), color, y in zip(chosen, colors, places, strict=True):
        axes.annotate(label, (1.0, y), (4, 0), xycoords=("axes fraction", "data"), color=color,
                      textcoords="offset points", va="center", fontsize=9)  # fmt: skip
    axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_ylim(low, high)
    axes.axhline(0, color="black", lw=0.8)
    over = "\n(over 100%: what came later added to it)" if most > 1.005 else ""
    axes.set(title=f"How much of what each {trace.kind} wrote is still in the memory",
             ylabel="of the change\nthat it made", xlabel=f"tokens read{over}")  # fmt: skip
    if others:
        axes.plot([], [], color=_LIGHT_GREY, lw=0.8, label=f"the other {len(others)}")
    if little:
        axes.plot([], [], lw=0, label=f"left out: {little} that wrote little")
    if others or little:
        axes.legend(loc="lower left")


def _curve(trace: Trace, row: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a row of ``left`` has values, and these."""
    there = np.isfinite(trace.left[row])
    return np.array(trace.marks)[there], trace.left[row][there]


def _chosen(trace: Trace) -> tuple[list[tuple[int, str]], list[int], int]:
    """The rows of ``left`` that get a curve with a name, those that get one, and how many do not.

    They are what there was at the start, and the turns, the last left out. Of turns that changed
    little beside others it says nothing how much of that is left.
    """
    given = trace.marks[0] == 0
    found = [(0, "as it was given")] if given else []
    found += [(n + given, f"{trace.kind} {n + 1}") for n in trace.told_much()]
    places = np.linspace(0, len(found) - 1, min(_CURVES, len(found))).round().astype(int)
    chosen = [found[place] for place in places]
    others = [row for row, name in found if (row, name) not in chosen]
    return chosen, others, len(trace.turns) - 1 + given - len(found)


def _spread(values: Sequence[float], gap: float) -> list[float]:
    """The values moved apart so that labels at them do not overlap."""
    order = np.argsort(values)
    placed = np.array(values, float)[order]
    for _ in range(50):
        for i in range(1, len(placed)):
            lack = gap - (placed[i] - placed[i - 1])
            if lack > 0:
                placed[i - 1] -= lack / 2
                placed[i] += lack / 2
    spread = np.empty(len(placed))
    spread[order] = placed
    return spread.tolist()


def _turn_bands(axes: Axes, trace: Trace) -> None:
    """Every other turn shaded, its number at the top where there is room."""
    total = len(trace.pieces)
    for n, (start, turn) in enumerate(zip(trace.starts, trace.turns, strict=True), start=1):
        if n % 2 == 0:
            axes.axvspan(start, turn.end, color="black", alpha=0.045, lw=0)
        if (turn.end - start) / total > 0.02:
            axes.annotate(str(n), ((start + turn.end) / 2, 1), (0, -3), va="top", ha="center",
                          xycoords=("data", "axes fraction"), textcoords="offset points",
                          color=GREY, fontsize=8.5)  # fmt: skip


def _draw_contrast(axes: Axes, trace: Trace) -> None:
    starts = trace.marks if trace.marks[0] == 0 else [0, *trace.marks]
    shown = trace.contrast if trace.marks[0] != 0 else trace.contrast[1:, 1:]
    mesh = axes.pcolormesh(starts, starts, shown, cmap="RdBu_r", vmin=-1, vmax=1)
    axes.grid(False)
    for turn in trace.turns[:-1] if len(trace.turns) <= _RULED else []:
        axes.axvline(turn.end, color="black", lw=0.5, alpha=0.6)
        axes.axhline(turn.end, color="black", lw=0.5, alpha=0.6)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set(title="How alike the memory is at two moments", xlabel="tokens read",
             ylabel="tokens read")  # fmt: skip
    for side in (axes.xaxis, axes.yaxis):
        side.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    edge = axes.secondary_xaxis("top")
    edge.set_ticks(*_numbers(trace))
    edge.tick_params(length=0, labelsize=8.5, labelcolor=GREY)
    edge.spines[:].set_visible(False)
    axes.figure.colorbar(mesh, ax=axes, location="bottom", shrink=0.8, aspect=35,
                         ticks=[-1, -0.5, 0, 0.5, 1],
                         label="1: the same; 0: as alike as any two here; −1: the least alike\n"
                         "(cosine similarity without what all of them share)")  # fmt: skip


def _numbers(trace: Trace) -> tuple[list[float], list[str]]:
    """Where the numbers of turns stand, those left out that would touch the one before."""
    places, names = list[float](), list[str]()
    for n, (start, turn) in enumerate(zip(trace.starts, trace.turns, strict=True), start=1):
        middle = (start + turn.end) / 2
        if not places or middle - places[-1] > 0.055 * len(trace.pieces):
            places.append(middle)
            names.append(str(n))
    return places, names


def _list_turns(axes: Axes, trace: Trace) -> None:
    """The turns by number: who says what."""
    axes.axis("off")
    axes.set_title(f"The {trace.kind}s")
    each = max(1, min(3, _LISTED_LINES // len(trace.turns)))
    lines = []
    for n, turn in enumerate(trace.turns, start=1):
        text = turn.text if trace.kind != "message" else f"{turn.role}: {turn.text}"
        wrapped = textwrap.wrap(one_line(text, each * (_LISTED_WIDTH - 6)), _LISTED_WIDTH)
        lines += [f"{n}  {(wrapped or [''])[0]}", *(f"     {line}" for line in wrapped[1:])]
    if len(lines) > _LISTED_LINES + 1:
        lines = [*lines[:_LISTED_LINES], "…"]
    axes.text(0, 1, "\n".join(lines), va="top", fontsize=9, linespacing=1.35,
              transform=axes.transAxes)  # fmt: skip


def _draw_text(axes: Axes, trace: Trace, laid: list[Laid]) -> None:
    """The text as it was read, each token shaded by its write gate."""
    beta = trace.write.mean(axis=1)
    low, high = np.quantile(beta, [0.02, 0.98])
    darkness = np.clip((beta - low) / max(high - low, 1e-9), 0, 1)
    shade = matplotlib.colormaps["Blues"]
    size = axes.figure.get_figure(root=True).get_figwidth() * 72 * 0.97 / _COLUMNS / 0.602
    for token, column, row, part in laid:
        value = darkness[token]
        patch = Rectangle((column, row), len(part), 0.9, color=shade(0.8 * value), lw=0)
        axes.add_patch(patch)
        axes.text(column, row + 0.45, part, family="DejaVu Sans Mono", fontsize=size,
                  va="center", color="white" if value > 0.75 else "black")  # fmt: skip
    axes.axis("off")
    axes.set_xlim(0, _COLUMNS)
    axes.set_ylim(laid[-1].row + 1, 0)
    shown = "" if laid[-1].token == len(trace.pieces) - 1 else ", its beginning"
    axes.set_title(f"The text{shown}: from white (β {low:.3f}) to dark (β {high:.3f})")


def _laid_out(pieces: Sequence[str]) -> list[Laid]:
    """The pieces in lines of ``_COLUMNS`` letters, as far as there is room."""
    laid, column, row = list[Laid](), 0, 0
    for token, piece in enumerate(pieces):
        for line_number, part in enumerate(piece.split("\n")):
            if line_number or column + len(part) > _COLUMNS:
                column, row = 0, row + 1
            if row >= _ROWS:
                return laid
            laid.append(Laid(token, column, row, part))
            column += len(part)
    return laid
