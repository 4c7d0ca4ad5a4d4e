"""A bench report as a chart. Needs matplotlib: the extra ``plot``."""

import textwrap
from collections.abc import Callable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..bench.generation import PLAIN, Row
from ..bench.run import BenchReport
from ..bench.scan import ScanRow
from .bench_report import headline
from .figures import BLUE, GREEN, ORANGE, drawn, figure

COLORS = {PLAIN: "#b5b5b5", "TSW": BLUE, "MSW": ORANGE, "SSW": GREEN}
WIDTH, BAR = 5.0, 0.3  # inches: of a part at least, and of a bar with its label
FORM_COLORS = {"recurrent": "#8a8a8a", "chunk": BLUE, "metal": ORANGE}


@drawn
def draw_bench(report: BenchReport) -> Figure:
    """Speeds side by side, and the scan's forms over the number of tokens.

    Raises:
        ValueError: If nothing was measured that could be drawn.
    """
    parts: list[Callable[[Axes], None]] = []
    widths: list[float] = []
    for draw_speeds, rows in ((_draw_prefill, report.prefill), (_draw_decode, report.decode)):
        if rows:
            parts.append(partial(draw_speeds, rows=rows))
            widths.append(max(WIDTH, BAR * (len(rows) + len(_cells(rows)))))
    if report.scan:
        parts.append(partial(_draw_scan, rows=report.scan))
        widths.append(WIDTH)
    if not parts:
        raise ValueError("Nothing to plot: measure prefill, decode or the scan.")
    picture = figure(sum(widths), 4.4)
    lines = [textwrap.fill(line, round(14 * sum(widths))) for line in headline(report).splitlines()]
    picture.suptitle("\n".join(lines), fontsize=9, x=0.01, ha="left")
    axes = picture.subplots(1, len(parts), squeeze=False, width_ratios=widths)[0]
    for ax, draw in zip(axes, parts, strict=True):
        draw(ax)
        ax.grid(axis="x", visible=False)
        ax.legend(ncols=2)
    return picture


def _draw_prefill(ax: Axes, rows: list[Row]) -> None:
    cells = _cells(rows)
    _draw_speeds(ax, rows, cells, [f"{n}" if b == 1 else f"{b} × {n}" for b, n in cells])
    cached = rows[0].cached
    title = f"One call behind {cached} tokens" if cached else "Prefill"
    ax.set(title=title, xlabel="tokens of the call" if cached else "prompt tokens",
           ylabel="tokens per second")  # fmt: skip


def _draw_decode(ax: Axes, rows: list[Row]) -> None:
    cells = _cells(rows)
    _draw_speeds(ax, rows, cells, [f"batch {b}\nafter {n}" for b, n in cells])
    ax.set(title="Decode", ylabel="tokens per second")


def _cells(rows: list[Row]) -> list[tuple[int, int]]:
    return sorted({(row.batch_size, row.length) for row in rows})


def _draw_speeds(
    ax: Axes, rows: list[Row], cells: list[tuple[int, int]], labels: list[str]
) -> None:
    """A group of bars per cell, the plain model first; the others say how much longer they take."""
    found = {(row.strategy, row.batch_size, row.length): row for row in rows}
    strategies = list(dict.fromkeys(row.strategy for row in rows))
    width, crowded = 0.8 / (len(strategies) + 1), len(cells) * (len(strategies) + 1) > 8
    for i, name in enumerate([PLAIN, *strategies]):
        is_plain = name == PLAIN
        here = [found[strategies[0] if is_plain else name, *cell] for cell in cells]
        speeds = [row.speed(row.plain if is_plain else row.patched) for row in here]
        xs = [x + (i - len(strategies) / 2) * width for x in range(len(cells))]
        bars = ax.bar(xs, speeds, width * 0.92, color=COLORS[name], label=name)
        if not is_plain:
            unit = " × the time" if crowded else " ×\nthe time"
            ratios = [f"{row.ratio.median:.2f}{unit}" for row in here]
            ax.bar_label(bars, ratios, fontsize=8, rotation=90 if crowded else 0, padding=3)
    ax.set_xticks(range(len(cells)), labels)
    ax.set_ylim(top=(1.7 if crowded else 1.4) * ax.get_ylim()[1])  # for labels and legend


def _draw_scan(ax: Axes, rows: list[ScanRow]) -> None:
    heads = min(row.heads for row in rows)
    rows = [row for row in rows if row.heads == heads]
    lengths = sorted({row.length for row in rows})
    ax.set(title="Scan alone", ylabel="milliseconds")
    if len(lengths) == 1:
        _draw_scan_bars(ax, rows)
        return
    for form in dict.fromkeys(row.form for row in rows):
        here = [row for row in rows if row.form == form]
        xs, color = [row.length for row in here], FORM_COLORS[form]
        forward = [row.forward.median * 1e3 for row in here]
        backward = [row.backward.median * 1e3 for row in here]
        ax.plot(xs, forward, "-o", color=color, label=form)
        ax.plot(xs, backward, "--s", color=color, label=f"{form} and gradients")
    ax.set(xlabel="tokens", xscale="log", yscale="log", ylim=(None, 8 * ax.get_ylim()[1]))
    ax.set_xticks(lengths, [str(length) for length in lengths])
    ax.yaxis.set_major_formatter(lambda ms, _: f"{ms:g}")
    ax.minorticks_off()


def _draw_scan_bars(ax: Axes, rows: list[ScanRow]) -> None:
    """The forms at one length: a single point would be no curve."""
    for n, row in enumerate(rows):
        times = {row.form: row.forward, f"{row.form} and gradients": row.backward}
        for i, (label, seconds) in enumerate(times.items()):
            bar = ax.bar(n + 0.42 * i, seconds.median * 1e3, 0.38, color=FORM_COLORS[row.form],
                         alpha=1 - i / 2, label=label)  # fmt: skip
            ax.bar_label(bar, fmt=_three_digits, fontsize=8, padding=2)
    ax.set(xticks=[], xlabel=f"{rows[0].length:,} tokens", ylim=(0, 1.3 * ax.get_ylim()[1]))


def _three_digits(value: float) -> str:
    return f"{float(f'{value:.3g}'):,g}"
