"""What the command says, and where: results on stdout, everything else on stderr.

`--quiet` silences notes and warnings, never results or errors; `--debug` asks for tracebacks.
Progress bars of the Hub go the way of the notes.
"""

import io
import json
import os
import sys
import warnings
from dataclasses import dataclass

from rich.console import Console

stderr = Console(stderr=True)


@dataclass
class Settings:
    """How this run speaks: set by the flags every command has."""

    quiet: bool = False
    debug: bool = False
    bar: Console | None = None  # that of a bar, while one is shown: what is said stands above it


settings = Settings()


def reset() -> None:
    """Back to the defaults; a test runs several commands in one process."""
    settings.quiet, settings.debug, settings.bar = False, False, None
    # Closed before the command began (`<&-`, `>&-`): nothing is read, what is said goes nowhere,
    # what is kept is kept.
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        # Results of hours are not to die of a letter that the terminal's encoding has not.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    warnings.showwarning = _show_warning
    # transformers advises to install PyTorch; nothing here needs it.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")


def set_quiet(value: bool) -> bool:
    """Callback of `--quiet`."""
    if value:
        settings.quiet = True
        # Read by huggingface_hub when it is imported, which is later than this.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    return value


def set_debug(value: bool) -> bool:
    """Callback of `--debug`."""
    settings.debug = settings.debug or value
    return value


def result(text: str = "", *, end: str = "\n") -> None:
    """Writes a result to stdout at once, as it is: pieces of a stream come with `end=""`."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def result_json(value: object) -> None:
    """Writes a result to stdout as one JSON document on one line."""
    result(json.dumps(value, ensure_ascii=False))


def note(text: str) -> None:
    """Writes a remark to stderr, unless `--quiet`."""
    if not settings.quiet:
        _write(text, "dim")


def warn(text: str) -> None:
    """Writes a warning to stderr, unless `--quiet`."""
    if not settings.quiet:
        _labelled("Warning", "yellow", text)


def fail(text: str) -> None:
    """Writes an error to stderr, always."""
    _labelled("Error", "bold red", text)


def can_ask() -> bool:
    """Whether somebody is there who sees a question and can answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def _labelled(label: str, style: str, text: str) -> None:
    _write(f"{label}: ", style, end="")
    _write(text)


def _write(text: str, style: str | None = None, end: str = "\n") -> None:
    """Text as it is: brackets are no markup, :words: no emoji, long lines the terminal's affair."""
    (settings.bar or stderr).print(
        text, style=style, end=end, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: object = None,
    line: str | None = None,
) -> None:
    """Python's warnings in the command's own voice: the place in the code only with `--debug`."""
    warn(f"{message} ({filename}:{lineno})" if settings.debug else str(message))
