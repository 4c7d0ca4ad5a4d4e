"""The options of `deltamem-mlx inspect` that no other command has."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from deltamem_mlx.cli.frame.errors import UsageError

PROBE, TRACE = "Asking a memory", "Tracing a text"


class ResultForm(NamedTuple):
    """How results are written."""

    json: bool
    numbers: bool


class By(StrEnum):
    """How finely a trace is shown."""

    TURN = "turn"
    TOKEN = "token"


Target = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE_OR_ADAPTER",
        help="A memory's name or file, the folder of a saved session, or an adapter: a folder or a "
        "Hub repository.",
        show_default=False,
    ),
]
Other = Annotated[
    str | None,
    typer.Argument(
        metavar="FILE", help="Another memory, to compare with the first.", show_default=False
    ),
]
Probe = Annotated[
    str | None,
    typer.Option(
        "--probe",
        metavar="QUESTION",
        help="Ask the memory, in several phrasings, without writing to it.",
        rich_help_panel=PROBE,
    ),
]
Phrasing = Annotated[
    list[str] | None,
    typer.Option(
        "--phrasing",
        metavar="QUESTION",
        help="Another way to ask. Repeatable.",
        rich_help_panel=PROBE,
    ),
]
Rephrase = Annotated[
    bool,
    typer.Option(
        "--rephrase/--no-rephrase",
        help="Ask in a few more ways made of the question, with English words around it.",
        rich_help_panel=PROBE,
    ),
]
Answers = Annotated[
    list[str] | None,
    typer.Option(
        "--answer",
        metavar="TEXT",
        help="Also say how likely this is in an answer, where it fits best. Repeatable.",
        rich_help_panel=PROBE,
    ),
]
Told = Annotated[
    Path | None,
    typer.Option(
        "--told",
        metavar="FILE|FOLDER",
        help="What the memory still holds of this text, or .json/.jsonl of messages: its strongest "
        "words, read again with the memory and without. Nothing is written.",
        rich_help_panel=PROBE,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE|FOLDER",
        help="Run a text, or .json/.jsonl of messages, through the model and watch its memory.",
        rich_help_panel=TRACE,
    ),
]
ByTurnOrToken = Annotated[
    By | None,
    typer.Option(
        "--by",
        help="Show turns (messages, or paragraphs of a text), or every token: that takes a call "
        "of the model per token. [default: turn]",
        show_default=False,
        rich_help_panel=TRACE,
    ),
]
Numbers = Annotated[
    bool, typer.Option("--numbers", help="Show the figures as well, with what they mean.")
]
Plot = Annotated[
    Path | None,
    typer.Option("--plot", metavar="FILE.png", help="Draw it as well; needs matplotlib."),
]
Conversation = Annotated[
    int,
    typer.Option("--conversation", min=0, help="Which conversation of a file that holds several."),
]


def check_use(
    targets: list[str],
    probe: str | None,
    told: Path | None,
    trace: Path | None,
    probe_flags: dict[str, list[str] | None],
    by: By | None,
) -> None:
    """Raises UsageError for flags that do not go together."""
    asked = {"--probe": probe, "--told": told, "--trace": trace}
    given = [flag for flag, value in asked.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: give one of them.")
    if len(targets) > 1 and given:
        raise UsageError(f"{given[0]} takes one memory; {targets[1]!r} is another.")
    stray = [flag for flag, values in probe_flags.items() if values and probe is None]
    if stray:
        raise UsageError(f"{', '.join(stray)}: only together with --probe.")
    if by is not None and trace is None:
        raise UsageError("--by: only together with --trace.")
    if probe is not None and not probe.strip():
        raise UsageError("--probe: the question is empty.")
