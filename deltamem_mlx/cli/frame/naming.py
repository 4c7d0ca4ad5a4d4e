"""Which memory a name stands for, and whether one of that name is to be begun."""

import os
from dataclasses import dataclass
from pathlib import Path

import typer

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError


@dataclass(frozen=True)
class MissingMemory:
    """A memory that there is none of.

    Attributes:
        called (str): What it is called: `memory wrok`, or `memory file ./wrok.safetensors`.
        others (str): Which there are, in a sentence; empty: none, or a file was meant.
        meant (str): The one that was probably meant; empty: none is so close.
    """

    called: str
    others: str
    meant: str


def missing_memory(memory: Path) -> MissingMemory:
    """What is to be said of a memory whose file is not there.

    The folder of a named one is made: what is saved there is its owner's only, the names as well.
    """
    from deltamem_mlx.files.places import goes_by_name, shown_memory
    from deltamem_mlx.memory.shelf import MemoryShelf, nearly_named

    name = shown_memory(memory)
    if not goes_by_name(memory):
        return MissingMemory(f"memory file {name}", "", "")
    memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shelf = MemoryShelf()
    meant = nearly_named(name, shelf.names())
    return MissingMemory(f"memory {name}", shelf.like(memory.stem), meant)


def _check_writable(memory: Path) -> None:
    """Raises UsageError where a memory could not be saved: its folder is replaced into."""
    target = Path(os.path.realpath(memory))  # a link is followed when it is saved
    there = next(folder for folder in target.parents if folder.exists())
    if not there.is_dir():
        raise UsageError(f"--memory: {str(there)!r} is a file; expected a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(
            f"--memory: nothing can be written in {str(there)!r}, so nothing could be saved; "
            "expected a folder of yours, or --read-only."
        )


def check_memory_path(memory: Path | None, *, new: bool, read_only: bool = False) -> None:
    """Looks at what `--memory` names before anything is loaded.

    Where there is no such memory but one that is called nearly so, it asks in a terminal whether
    one is to be begun, unless ``new`` says so.

    Raises:
        UsageError: If no memory can lie there, or none is there and none is to be begun.
    """
    if memory is None:
        return
    if memory.is_dir():
        raise UsageError(f"--memory: {str(memory)!r} is a folder; expected a file.")
    if not read_only:
        _check_writable(memory)
    if memory.exists() or (new and not read_only):
        return
    missing = missing_memory(memory)
    if read_only:
        others = f" {missing.others}" if missing.others else ""
        raise UsageError(f"No {missing.called}: with --read-only, none is begun.{others}")
    if not missing.meant:
        return
    said = f"No {missing.called}. Did you mean {missing.meant}?"
    if launched.rank() is not None or not output.can_ask():
        raise UsageError(f"{said} To begin a new one: --new-memory")
    if not typer.confirm(f"{said} Begin a new one?", err=True):
        output.note("Nothing was done.")
        raise typer.Exit(1)
