"""`memories undo` and `redo`: a memory as it was before its last turns, and back."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options import memories as m
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.memory.contents import MemoryFile

Turns = Annotated[int, typer.Option("--turns", "-n", min=1, help="How many turns.")]
ForGood = Annotated[
    bool,
    typer.Option("--for-good", help="Keep nothing of what is taken back: no `redo` brings it."),
]


@command(
    "deltamem-mlx memories undo",
    "deltamem-mlx memories undo anna",
    "deltamem-mlx memories undo me.safetensors --turns 2",
    "deltamem-mlx memories undo KEY --folder memories",
)
def undo(
    name: m.DefaultName = None,
    turns: Turns = 1,
    for_good: ForGood = False,
    folder: m.Folder = None,
    yes: m.Yes = False,
    json: o.Json = False,
) -> None:
    """Take back the last turns of a memory, as if they had never been.

    A turn is a question with its answer, or a file that was remembered: to take back what was told
    before a question, take back the question, too. generate, chat, remember and serve keep the last
    64 turns with a memory. Which turns go is shown; in a terminal it asks first.

    `memories redo` puts them back, until the memory is written again.
    """
    from deltamem_mlx.files import Witness
    from deltamem_mlx.memory.file import read_memory
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.memory.undo import undo_memory_file

    name = m.or_default(name, folder)
    path, witness = MemoryShelf(folder).path(name), Witness()
    witness.note(path)  # a turn that is told while the question waits has not been shown
    memory = read_memory(path)
    before = sum(memory.tokens_written)
    if not json and turns <= len(memory.history):
        _show_and_ask(memory, turns, yes)
    with _called(name, path):
        memory = undo_memory_file(path, turns, redo=not for_good, witness=witness)
    left, written = len(memory.history), sum(memory.tokens_written)
    if json:
        _as_json(path, turns, memory)
        return
    output.result(
        f"Took back {turns} turn{'s' * (turns != 1)} of {name}, {before - written:,} tokens: "
        f"{written:,} tokens are written. "
        f"{left or 'No'} more can be."
    )
    if not for_good:
        output.note(f"To put back what was taken: {m.line('redo', name, folder)}")


def _show_and_ask(memory: "MemoryFile", turns: int, yes: bool) -> None:
    """Says which turns these are; in a terminal, asks unless told not to. Raises Exit for no."""
    from deltamem_mlx.memory.kept import kept_turns
    from deltamem_mlx.views.memories import taken_text

    shown = taken_text(kept_turns(memory)[-turns:])
    if yes or not output.can_ask():
        output.note(shown)
        return
    question = "Take it back?" if turns == 1 else f"Take these {turns} turns back?"
    if not typer.confirm(f"{shown}\n{question}", err=True):
        output.note("Nothing was taken back.")
        raise typer.Exit(1)


PutBack = Annotated[
    int | None,
    typer.Option(
        "--turns", "-n", min=1, help="How many turns, the earliest first.", show_default="all"
    ),
]


@command(
    "deltamem-mlx memories redo",
    "deltamem-mlx memories redo anna",
    "deltamem-mlx memories redo anna --turns 1",
)
def redo(
    name: m.DefaultName = None,
    turns: PutBack = None,
    folder: m.Folder = None,
    json: o.Json = False,
) -> None:
    """Put back what `memories undo` took: all of it, or the first turns.

    As long as the memory has not been written since: what is told to it then stands in the place
    of what was taken back. Which turns come back is shown.
    """
    from deltamem_mlx.memory.file import read_memory
    from deltamem_mlx.memory.kept import kept_turns
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.memory.undo import redo_memory_file
    from deltamem_mlx.views.memories import taken_text

    name = m.or_default(name, folder)
    path = MemoryShelf(folder).path(name)
    before = len(read_memory(path).history)
    with _called(name, path):
        memory = redo_memory_file(path, turns)
    turns, written = len(memory.history) - before, sum(memory.tokens_written)
    if json:
        _as_json(path, turns, memory)
        return
    output.note(taken_text(kept_turns(memory)[-turns:]))
    output.result(
        f"Put back {turns} turn{'s' * (turns != 1)} of {name}: {written:,} tokens are written."
    )


@contextmanager
def _called(name: str, path: Path) -> Iterator[None]:
    """What cannot be done is said of the memory as it was named."""
    try:
        yield
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), name, 1)) from error


def _as_json(path: Path, turns: int, memory: "MemoryFile") -> None:
    """Says how many turns went or came back, and what the memory is now."""
    written = sum(memory.tokens_written)
    output.result_json(
        {
            "path": str(path),
            "turns": turns,
            "undo_turns": len(memory.history),
            "tokens_written": written,
        }
    )
