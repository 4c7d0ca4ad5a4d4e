"""One answer as a command shows it: its pieces as they come, and what it took."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deltamem_mlx.cli.frame import output

if TYPE_CHECKING:
    from mlx_lm.generate import GenerationResponse


@dataclass
class GeneratedAnswer:
    """What one prompt gave; times in seconds, `peak_memory` in GB."""

    text: str
    finish_reason: str | None
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    time_to_first_token: float
    peak_memory: float
    drafted_tokens: int  # that the draft model guessed
    lost: OSError | None = field(default=None, repr=False)  # what kept it from being printed


class Printed:
    """Pieces of an answer on stdout; the answer goes on, and is kept, if nobody reads it there."""

    def __init__(self, quiet: bool):
        self.quiet = quiet
        self.lost: OSError | None = None

    def add(self, text: str) -> None:
        if not self.quiet and self.lost is None:
            try:
                output.result(text, end="")
            except OSError as error:
                self.lost = error


def show_answer(responses: Iterator["GenerationResponse"], *, quiet: bool) -> GeneratedAnswer:
    """Writes the pieces as they come, unless `quiet`, and returns the whole."""
    began, first, drafted = time.perf_counter(), 0.0, 0
    pieces, response = [], None
    printed = Printed(quiet)
    for response in responses:
        first = first or time.perf_counter() - began
        drafted += response.from_draft
        pieces.append(response.text)
        printed.add(response.text)
    printed.add("\n")
    if response is None:
        raise RuntimeError("The model gave no answer.")
    return GeneratedAnswer(
        text="".join(pieces),
        finish_reason=response.finish_reason,
        prompt_tokens=response.prompt_tokens,
        prompt_tps=response.prompt_tps,
        generation_tokens=response.generation_tokens,
        generation_tps=response.generation_tps,
        time_to_first_token=first,
        peak_memory=response.peak_memory,
        drafted_tokens=drafted,
        lost=printed.lost,
    )
