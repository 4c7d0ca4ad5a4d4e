"""A bench report as a chart. Needs matplotlib: the extra ``plot``."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench.generation import PLAIN, Row
from ..bench.run import BenchReport
from ..bench.scan import ScanRow
from .bench_report import headline
from .figures import BLUE, GREEN, GREY, ORANGE, drawn, figure

COLORS = {PLAIN: GREY, "TSW": BLUE, "MSW": ORANGE, "SSW": GREEN}
FORM_COLORS = {"recurrent": GREY, "chunk": BLUE, "metal": ORANGE}


@drawn
def draw_bench(report: BenchReport) -> Figure:
    """Speeds side by side, and the scan's forms over the number of tokens.

    Raises:
        ValueError: If nothing was measured that could be drawn.
    """
    parts = [
        (draw, rows)
        for draw, rows in [
            (_draw_prefill, report.prefill),
            (_draw_decode, report.decode),
            (_draw_scan, report.scan),
        ]
        if rows
    ]
    if not parts:
        raise ValueError("Nothing to plot: measure prefill, decode or the scan.")
    picture = figure(5.0 * len(parts), 4.4)
    picture.suptitle(headline(report), fontsize=9, x=0.01, ha="left")
    axes = picture.subplots(1, len(parts), squeeze=False)[0]
    for ax, (draw, rows) in zip(axes, parts, strict=True):
        draw(ax, rows)
        ax.grid(axis="x", visible=False)
        ax.legend(ncols=2)
    return picture


def _draw_prefill(ax: Axes, rows: list[Row]) -> None:
    cells = _cells(rows)
    _draw_speeds(ax, rows, cells, [f"{n}" if b == 1 else f"{b} × {n}" for b, n in cells])
    ax.set(title="Prefill", xlabel="prompt tokens", ylabel="tokens per second")


def _draw_decode(ax: Axes, rows: list[Row]) -> None:
    cells = _cells(rows)
    _draw_speeds(ax, rows, cells, [f"batch {b}\nafter {n}" for b, n in cells])
    ax.set(title="Decode", ylabel="tokens per second")


def _cells(rows: list[Row]) -> list[tuple[int, int]]:
    return sorted({(row.batch_size, row.length) for row in rows})


def _draw_speeds(
    ax: Axes, rows: list[Row], cells: list[tuple[int, int]], labels: list[str]
) -> None:
    """A group of bars per cell, the plain model first; the others carry their time ratio."""
    found = {(row.strategy, row.batch_size, row.length): row for row in rows}
    strategies = list(dict.fromkeys(row.strategy for row in rows))
    width = 0.8 / (len(strategies) + 1)
    for i, name in enumerate([PLAIN, *strategies]):
        is_plain = name == PLAIN
        here = [found[strategies[0] if is_plain else name, *cell] for cell in cells]
        speeds = [row.speed(row.plain if is_plain else row.patched) for row in here]
        xs = [x + (i - len(strategies) / 2) * width for x in range(len(cells))]
        bars = ax.bar(xs, speeds, width * 0.92, color=COLORS[name], label=name)
        if not is_plain:
            ratios = [f"{row.ratio.median:.2f} ×" for row in here]
            ax.bar_label(bars, ratios, fontsize=7, rotation=90, padding=3)
    ax.set_xticks(range(len(cells)), labels)
    ax.set_ylim(top=1.3 * ax.get_ylim()[1])  # room for the labels and the legend


def _draw_scan(ax: Axes, rows: list[ScanRow]) -> None:
    heads = min(row.heads for row in rows)
    for form in dict.fromkeys(row.form for row in rows):
        here = [row for row in rows if row.form == form and row.heads == heads]
        lengths = [row.length for row in here]
        for what, line in (("forward", "-"), ("backward", "--")):
            ms = [getattr(row, what).median * 1e3 for row in here]
            label = form if what == "forward" else f"{form} and gradients"
            ax.plot(lengths, ms, line, marker="o", color=FORM_COLORS[form], label=label)
    ax.set(title="Scan alone", xlabel="tokens", ylabel="milliseconds")
    ax.set(xscale="log", yscale="log", ylim=(None, 8 * ax.get_ylim()[1]))
    ax.set_xticks(lengths, [str(length) for length in lengths])
    ax.yaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
    ax.minorticks_off()
