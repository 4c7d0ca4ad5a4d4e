"""The options that commands share, each written once; names and meanings are mlx-lm's.

A command takes what it needs: `def generate(model: Model = None, temp: Temp = 0.0, …)`. Those that
every command has (`--config`, `--quiet`, `--debug`) are added by `frame.command`.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output, yaml_options
from deltamem_mlx.problems import shortened

MODEL, MEMORY, SAMPLING, CONTEXT, GENERAL = (
    "Model and adapter",
    "Memory",
    "Sampling",
    "Context and cache",
    "General",
)


def _one_of(*allowed: int) -> Callable[[int | None], int | None]:
    """A callback that lets only these numbers through."""

    def check(value: int | None) -> int | None:
        if value is not None and value not in allowed:
            raise typer.BadParameter(f"{value} is not one of {', '.join(map(str, allowed))}.")
        return value

    return check


def check_seed(value: int | None) -> int | None:
    """Raises BadParameter for what is no seed."""
    if value is not None and not 0 <= value < 1 << 63:
        raise typer.BadParameter(f"{shortened(value)} is no seed; expected 0 to 2**63 - 1.")
    return value


def _named(value: str | None) -> str | None:
    """Raises BadParameter for an empty name; what is left out is no name."""
    if value is not None and not value.strip():
        raise typer.BadParameter("it is empty; expected a folder or user/repo.")
    return value


def _finite(value: float) -> float:
    """Raises BadParameter for what is no number."""
    if not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no number to sample by; expected 0 or more.")
    return value


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="FOLDER|REPO",
        callback=_named,
        help="An mlx-lm model: a local folder, or a Hub repository as user/repo or user/repo@rev.",
        rich_help_panel=MODEL,
    ),
]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        "--adapter-path",
        metavar="FOLDER|REPO",
        callback=_named,
        help="A δ-mem adapter in any of its three forms: a local folder or a Hub repository.",
        rich_help_panel=MODEL,
    ),
]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Let the tokenizer run code from its repository.",
        rich_help_panel=MODEL,
    ),
]
Pipeline = Annotated[
    bool,
    typer.Option(
        "--pipeline",
        help="Under mlx.launch: some of the layers in each process, instead of a part of each "
        "layer.",
        rich_help_panel=MODEL,
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option("--prompt", "-p", metavar="TEXT", help="The same as PROMPT."),
]
SystemPrompt = Annotated[
    str | None,
    typer.Option("--system-prompt", metavar="TEXT", help="The system message of the chat."),
]
MaxTokens = Annotated[
    int,
    typer.Option("--max-tokens", "-m", min=1, help="Stop after this many new tokens."),
]
Temp = Annotated[
    float,
    typer.Option(
        "--temp",
        min=0.0,
        callback=_finite,
        help="Sampling temperature; 0 is greedy.",
        rich_help_panel=SAMPLING,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Sample from the likeliest tokens of this total probability; 0 and 1: off.",
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        min=0,
        help="Sample from this many of the likeliest tokens; 0: off.",
        rich_help_panel=SAMPLING,
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Drop tokens less likely than this share of the likeliest; 0: off.",
        rich_help_panel=SAMPLING,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        callback=check_seed,
        help="Seed of the random numbers.",
        rich_help_panel=SAMPLING,
    ),
]
KvBits = Annotated[
    int | None,
    typer.Option(
        "--kv-bits",
        callback=_one_of(2, 3, 4, 5, 6, 8),
        metavar="BITS",
        help="Quantize the KV cache to 2, 3, 4, 5, 6 or 8 bits.",
        rich_help_panel=CONTEXT,
    ),
]
KvGroupSize = Annotated[
    int,
    typer.Option(
        "--kv-group-size",
        callback=_one_of(32, 64, 128),
        metavar="SIZE",
        help="Group size of the quantized KV cache: 32, 64 or 128.",
        rich_help_panel=CONTEXT,
    ),
]
MaxKvSize = Annotated[
    int | None,
    typer.Option(
        "--max-kv-size",
        min=1,
        help="Keep only this many tokens in the KV cache; the memory keeps what that loses.",
        rich_help_panel=CONTEXT,
    ),
]
PrefillStepSize = Annotated[
    int | None,
    typer.Option(
        "--prefill-step-size",
        min=1,
        help="Feed the prompt this many tokens at a time; Ctrl-C is heard in between.",
        show_default="256 on a CPU, 1024 on a GPU",
        rich_help_panel=CONTEXT,
    ),
]
DraftModel = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="FOLDER|REPO",
        help="A smaller model with the same vocabulary that guesses ahead: the same answers, and "
        "faster where it guesses well.",
        rich_help_panel=MODEL,
    ),
]
NumDraftTokens = Annotated[
    int,
    typer.Option(
        "--num-draft-tokens",
        min=1,
        max=64,
        help="With --draft-model: how many tokens it guesses at a time.",
        rich_help_panel=MODEL,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Write the result as JSON on one line.", rich_help_panel=GENERAL),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE.yaml",
        is_eager=True,
        callback=yaml_options.use_config,
        help="Read options from a YAML file, keys being flag names; flags given here win.",
        rich_help_panel=GENERAL,
    ),
]
Quiet = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        callback=output.set_quiet,
        help="Write results and errors only.",
        rich_help_panel=GENERAL,
    ),
]
Debug = Annotated[
    bool,
    typer.Option(
        "--debug",
        callback=output.set_debug,
        help="Show the traceback of an error.",
        rich_help_panel=GENERAL,
    ),
]
