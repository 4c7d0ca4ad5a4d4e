"""The options of `deltamem-mlx bench`, and their defaults."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.options import shared as o

SHAPE, WHAT, HOW = "Random weights", "What to measure", "How to measure"

DEFAULT_SHAPE, DEFAULT_LAYERS = "smollm2-135m", 4
SECONDS, FULL_SECONDS = 3.0, 15.0


class DType(StrEnum):
    """Of weights that are not quantized."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"


class Clock(StrEnum):
    """Which time counts."""

    WALL = "wall"
    CPU = "cpu"


def _default(text: str, instead: str) -> str:
    """Help text with a default in words, in place of Typer's `[default: None]`."""
    return f"{text} [default: {instead}]"


Shape = Annotated[
    str | None,
    typer.Option(
        "--shape",
        metavar="NAME",
        help=_default(
            "Random weights in the shape of a known model: qwen3-0.6b, qwen3-1.7b, qwen3-4b, "
            "qwen3-8b, llama-3.2-1b, llama-3.2-3b, smollm2-135m, smollm2-1.7b, tiny.",
            DEFAULT_SHAPE,
        ),
        show_default=False,
        rich_help_panel=SHAPE,
    ),
]
Layers = Annotated[
    int | None,
    typer.Option(
        "--layers",
        min=1,
        help=_default(
            "Build this many of the shape's layers, and as much of its vocabulary in proportion.",
            str(DEFAULT_LAYERS),
        ),
        show_default=False,
        rich_help_panel=SHAPE,
    ),
]
Bits = Annotated[
    int | None,
    typer.Option(
        "--bits",
        callback=o._one_of(2, 3, 4, 5, 6, 8),
        metavar="BITS",
        help="Quantize the random weights to 2, 3, 4, 5, 6 or 8 bits.",
        rich_help_panel=SHAPE,
    ),
]
DTypeChoice = Annotated[
    DType | None,
    typer.Option(
        "--dtype",
        help=_default("Of the random weights.", "float32 on a CPU, else bfloat16"),
        show_default=False,
        rich_help_panel=SHAPE,
    ),
]


def _list(flag: str, text: str, instead: str, metavar: str = "N,…") -> typer.models.OptionInfo:
    """An option that takes a list with commas."""
    return typer.Option(
        flag,
        metavar=metavar,
        help=_default(text, instead),
        show_default=False,
        rich_help_panel=WHAT,
    )


Only = Annotated[
    str | None,
    _list(
        "--only",
        "Parts: prefill, decode, memory, scan, draft, train.",
        "the first four; with --draft-model draft",
        "PART,…",
    ),
]
Strategies = Annotated[
    str | None,
    _list(
        "--strategies",
        "Ways in which the untrained adapters write: TSW (every token), MSW (every token, to 4 "
        "states), SSW (message by message).",
        "TSW; all with --full",
        "NAME,…",
    ),
]
PromptLengths = Annotated[
    str | None,
    _list("--prompt-lengths", "Tokens of the prompts.", "128,512; with --full 128,512,2048"),
]
Cached = Annotated[
    int,
    typer.Option(
        "--cached",
        min=0,
        metavar="N",
        help="Time each prompt as one call behind N cached tokens, with all its logits: a chat's "
        "turn, or drafts that are verified.",
        rich_help_panel=WHAT,
    ),
]
WriteLengths = Annotated[
    str | None,
    _list("--write-lengths", "With --only train: tokens of history to learn from.", "256,2048"),
]
Depths = Annotated[
    str | None,
    _list("--depths", "Tokens in the cache when decoding begins.", "512; with --full 128,2048"),
]
BatchSizes = Annotated[
    str | None,
    _list(
        "--batch-sizes",
        "Conversations at a time. Several prompts are prefilled together if they have no more "
        "tokens than the longest alone.",
        "1,8",
    ),
]
Mixed = Annotated[
    bool,
    typer.Option(
        "--mixed",
        help="Decode a server's batch: every second conversation only reads, and with SSW the "
        "first is within a message.",
        rich_help_panel=WHAT,
    ),
]
Profile = Annotated[
    bool,
    typer.Option(
        "--profile",
        help="Where a memory's time goes in calls of --prompt-lengths tokens [default: 1,8,64], "
        "behind --cached ones: building the graph, and which operations.",
        rich_help_panel=WHAT,
    ),
]
ScanLengths = Annotated[
    str | None,
    _list("--scan-lengths", "Tokens of the scan alone.", "2048; with --full 128,512,2048,8192"),
]
DraftTokens = Annotated[
    str | None,
    _list("--num-draft-tokens", "With --draft-model: how many tokens it guesses.", "1,3,5"),
]
DecodeTokens = Annotated[
    int,
    typer.Option("--decode-tokens", min=1, help="Tokens that a run decodes.", rich_help_panel=HOW),
]
Full = Annotated[
    bool,
    typer.Option(
        "--full",
        help="More lengths, all strategies, more rounds: minutes instead of one.",
        rich_help_panel=HOW,
    ),
]
Seconds = Annotated[
    float | None,
    typer.Option(
        "--seconds",
        min=0.0,
        help=_default(
            "Time per figure: as many runs of each model as fit, 3 to 100.",
            f"{SECONDS:g}; with --full {FULL_SECONDS:g}",
        ),
        show_default=False,
        rich_help_panel=HOW,
    ),
]
Rounds = Annotated[
    int | None,
    typer.Option(
        "--rounds",
        min=1,
        help="Runs of each model per figure, however long they take.",
        show_default=False,
        rich_help_panel=HOW,
    ),
]
ClockChoice = Annotated[
    Clock,
    typer.Option(
        "--clock",
        help="Count wall-clock time, or the processor time of the process: steadier on a busy "
        "machine, but blind to a GPU.",
        rich_help_panel=HOW,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        min=0,
        max=2**32 - 1,
        help="Seed of the random numbers.",
        rich_help_panel=o.SAMPLING,
    ),
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Draw it as well; needs matplotlib."),
]
