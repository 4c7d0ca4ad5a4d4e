"""The picture of a memory: what it holds of what was told, then its matrices.

Needs matplotlib: the extra ``plot``.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..files.places import shown_memory
from ..inspection.holding import HELD, HeldWord
from ..inspection.memory_contents import MemoryContents
from ..memory.kept import KeptTurn, kept_turns
from .columns import one_line, signed, up_to
from .figures import BLUE, GREEN, GREY, ORANGE, abreast, drawn, figure, stacked
from .layer_plots import bars, heatmaps, level
from .memories import turn_words

_BEST, _GONE = 8, 6  # words
_TURNS = 24
_FEW = 4
_WORD_HEIGHT, _WORDS_FRAME = 0.32, 1.3  # inches
_NO_WORDS = (
    "A memory keeps no words. What it holds of those of a text: deltamem-mlx inspect {name} --told "
    "TEXT --plot words.png"
)


@drawn
def draw_memory(memory: MemoryContents, held: Sequence[HeldWord] = ()) -> Figure:
    """What a memory holds best and has let go of; then its states, layer by layer.

    Args:
        memory (MemoryContents): The memory.
        held (Sequence[HeldWord]): Words of a text, as ``held_words`` finds them.
    """
    turns = kept_turns(memory.file)[-_TURNS:]
    words = _shown(held)
    bars_of_turns = 0.22 * max(len(turns), _FEW) + 1.2
    bars_of_words = _WORD_HEIGHT * len(words) + _WORDS_FRAME
    told = max(bars_of_words if words else 0.0, bars_of_turns if turns else 0.0)
    picture = figure(11, 6.4 + told)
    tokens = f"{memory.tokens_written:,} token{'s' * (memory.tokens_written != 1)} written"
    picture.suptitle(f"The memory {one_line(Path(memory.name).stem, 60)}: {tokens}", fontsize=13)
    if not words:
        name = shlex.quote(shown_memory(Path(memory.name)))
        picture.supxlabel(_NO_WORDS.format(name=name), x=0.012, ha="left", fontsize=8.5, color=GREY)
    *first, top, bottom = stacked(picture, [*([told] if told else []), 3.4, 3.0])
    for part in first:
        parts = abreast(part, [1.4, 1]) if words and turns else [part]
        if words:
            rows = (told - _WORDS_FRAME) / _WORD_HEIGHT  # beside many turns, few words
            _draw_words(parts[0].subplots(), words, rows)
        if turns:
            _draw_turns(parts[-1].subplots(), turns)
    heatmaps(top, [memory.states])
    norms, ranks = bottom.subplots(1, 2)
    layers = [m.layer for m in memory.layers]
    bars(norms, layers, [m.norm for m in memory.layers], BLUE)
    norms.set(title="How much each layer holds", ylabel="size of its numbers together\n(norm)")
    r = next(iter(memory.states.values())).shape[-1]
    bars(ranks, layers, [m.effective_rank for m in memory.layers], GREEN)
    level(ranks, r, "all of it")
    ranks.set(title="How much of its room is in use", ylabel="directions in use\n(effective rank)")
    ranks.set_ylim(0, r * 1.12)
    return picture


def _shown(held: Sequence[HeldWord]) -> list[HeldWord]:
    """The words that are held best, and those that are not, the worst last."""
    best = [word for word in held if word.gain >= HELD]
    gone = [word for word in held if word.gain < HELD]
    return [*best[:_BEST], *gone[-_GONE:]]


def _draw_words(axes: Axes, words: Sequence[HeldWord], rows: float) -> None:
    reach = max(1.0, *(abs(word.gain) for word in words))
    for y, word in enumerate(words):
        held = word.gain >= HELD
        axes.barh(y, word.gain, height=0.62, color=BLUE if held else ORANGE,
                  hatch=None if held else "///", edgecolor="white")  # fmt: skip
        said = f"{signed(word.gain)}  {up_to(word.before, word.word, 34)}"
        axes.annotate(said, (max(word.gain, 0), y), (5, 0), textcoords="offset points",
                      va="center", fontsize=8.5, color=GREY,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    axes.set_yticks(range(len(words)), [one_line(word.word, 18) for word in words], weight="bold")
    axes.set_ylim(max(len(words), rows) - 0.4, -0.6)
    axes.set_xlim(min(-1.0, *(word.gain * 1.1 for word in words)), reach * 1.75)
    axes.axvline(0, color="black", lw=0.8)
    axes.axvline(HELD, color=GREY, lw=0.8, ls=":")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title("Strongest words: held (plain), let go of or told otherwise (hatched)")
    axes.set_xlabel(
        "what the memory adds to the word's log-probability\n"
        f"(nats; dotted: from {HELD:g} on it counts as held)"
    )


def _draw_turns(axes: Axes, turns: Sequence[KeptTurn]) -> None:
    """A bar a turn, the last at the top, as `memories show` lists them."""
    shares = [max(0.0, turn.left) for turn in reversed(turns)]
    places = range(1, len(turns) + 1)
    for place, share in zip(places, shares, strict=True):
        kept = share >= 0.5
        axes.barh(place, share, height=0.7, color=BLUE if kept else ORANGE,
                  hatch="" if kept else "///", edgecolor="white")  # fmt: skip
    names = [
        f"{one_line(turn_words(turn), 24)}  {back}"
        for back, turn in enumerate(reversed(turns), start=1)
    ]
    axes.set_yticks(list(places), names, fontsize=8.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(max(len(turns), _FEW) + 0.6, 0.4)  # few bars would be as wide as walls
    axes.set_xlim(0, max(1.15, max(shares) * 1.1))
    axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    axes.set_title(f"What is left of the last {len(turns)} turn{'s' * (len(turns) != 1)}")
    more = "\n(over 100%: later turns added to it)" * (max(shares) > 1.005)
    axes.set_xlabel(f"of the change that it made; 1: the last turn{more}")
