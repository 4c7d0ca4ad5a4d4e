"""What pictures of layers share: states as heat-maps, a bar a layer. Needs matplotlib."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import FigureBase

from .figures import GREY, whole_numbers

_HEATMAPS = 5
_LEAST_BARS = 6


def heatmaps(
    area: FigureBase, memories: Sequence[Mapping[int, np.ndarray]], names: Sequence[str] = ("",)
) -> None:
    """A row of states per memory, a column per layer, all in one colour scale.

    The scale ends where one in two hundred entries is beyond it: single large ones would leave the
    others pale.
    """
    layers = sorted(memories[0])
    places = np.linspace(0, len(layers) - 1, min(_HEATMAPS, len(layers))).round().astype(int)
    chosen = [layers[i] for i in places]
    shown = [[_tiles(states[i]) for i in chosen] for states in memories]
    entries = np.abs(np.concatenate([tile.ravel() for row in shown for tile in row]))
    limit = float(np.quantile(entries, 0.995)) or 1.0
    grid = area.subplots(len(memories), len(chosen), squeeze=False)
    if len(chosen) < len(layers):
        area.suptitle(f"{len(chosen)} of {len(layers)} layers", fontsize=10, color=GREY)
    heads, r = memories[0][layers[0]].shape[1:3]
    for m, row in enumerate(shown):
        for c, tile in enumerate(row):
            axes: Axes = grid[m, c]
            axes.imshow(tile, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
            axes.grid(False)
            for head in range(1, heads):
                axes.axvline(head * r - 0.5, color="black", lw=0.8)
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{names[m]}{', ' * bool(names[m])}layer {chosen[c]}")
            several = f", {heads} heads side by side" if heads > 1 else ""
            axes.set_xlabel(f"what is asked (key{several})")
            axes.set_ylabel("what comes\n(value)" if c == 0 else "")
    scale = ScalarMappable(Normalize(-limit, limit), "RdBu_r")
    extend = "both" if entries.max() > limit else "neither"
    area.colorbar(scale, ax=grid, label="its numbers", shrink=0.85, pad=0.01, extend=extend)


def _tiles(state: np.ndarray) -> np.ndarray:
    """The states [1, H, r, r] of a layer side by side."""
    return np.concatenate(list(state[0]), axis=1)


def bars(axes: Axes, layers: Sequence[int], values: Sequence[float], color: str) -> None:
    """A bar for each layer."""
    axes.bar(layers, values, color=color, width=0.75)
    lack = max(0, _LEAST_BARS - len(layers)) / 2  # few bars would be as wide as walls
    axes.set_xlim(min(layers) - 0.5 - lack, max(layers) + 0.5 + lack)
    axes.set_xlabel("layer")
    axes.grid(axis="x", visible=False)
    if len(layers) <= _LEAST_BARS:
        axes.set_xticks(layers)
    else:
        whole_numbers(axes)


def level(axes: Axes, value: float, label: str) -> None:
    """A line across, named at its right end."""
    axes.axhline(value, color=GREY, lw=1, ls="--")
    axes.annotate(label, (1.0, value), (4, 0), xycoords=("axes fraction", "data"), color=GREY,
                  textcoords="offset points", va="center", fontsize=9)  # fmt: skip
