"""The look of all pictures, and how they are written. Needs matplotlib: the extra ``plot``."""

import functools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, FigureBase, SubFigure
from matplotlib.ticker import MaxNLocator

from ..files import write_atomically

BLUE, ORANGE, GREEN, GREY = "#2166ac", "#d95f02", "#1b9e77", "#666666"

_STYLE: dict[str, Any] = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the picture is the same everywhere
    "text.parse_math": False,  # a text may hold dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "legend.fontsize": 9,
}

P = ParamSpec("P")


def figure(width: float, height: float) -> Figure:
    """An empty figure that no window system knows of; width and height in inches."""
    new = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(new)
    return new


def stacked(picture: FigureBase, heights: Sequence[float]) -> list[SubFigure]:
    """Parts of a picture under each other, with these relative heights."""
    return list(picture.subfigures(len(heights), 1, squeeze=False, height_ratios=heights).flat)


def abreast(picture: FigureBase, widths: Sequence[float]) -> list[SubFigure]:
    """Parts of a picture beside each other, with these relative widths."""
    return list(picture.subfigures(1, len(widths), squeeze=False, width_ratios=widths).flat)


def drawn(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Makes a function draw in the look of all pictures."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with style.context(_STYLE):
            return draw(*args, **kwargs)

    return styled


def save(picture: Figure, path: str | Path) -> None:
    """Write a picture atomically, in the format that the suffix of ``path`` names."""
    with warnings.catch_warnings(), style.context(_STYLE):
        # Texts may hold letters that the font has not; a box stands for those.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        write_atomically(path, lambda p: picture.savefig(p, dpi=150))


def suffixes() -> list[str]:
    """The suffixes that a picture's name may have."""
    return sorted(f".{kind}" for kind in FigureCanvasAgg.get_supported_filetypes())


def whole_numbers(axes: Axes) -> None:
    """Ticks of the x axis at whole numbers only: it counts layers or tokens."""
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
