"""`memories remove`: asks first."""

import sys
from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.options import memories as m

Names = Annotated[
    list[str], typer.Argument(metavar="NAME...", help="Which memories.", show_default=False)
]


@command(
    "deltamem-mlx memories remove anna",
    "deltamem-mlx memories remove anna ben --yes",
)
def remove(names: Names, folder: m.Folder = None, yes: m.Yes = False) -> None:
    """Delete memories, for good."""
    from deltamem_mlx.memory.shelf import MemoryShelf
    from deltamem_mlx.views.memories import memories_text

    shelf = MemoryShelf(folder)
    names = list({shelf.path(name): name for name in names}.values())  # all there, each once
    found, yours = [shelf.look(name) for name in names], m.default_memory()
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("Nobody is there to be asked: give --yes to delete them.")
        shown = memories_text(found, yours)
        if not typer.confirm(f"{shown}\nDelete {', '.join(names)} for good?", err=True):
            output.note("Nothing was deleted.")
            raise typer.Exit(1)
    for name, memory in zip(names, found, strict=True):
        shelf.remove(name)
        output.result(f"{name} is gone.")
        if memory.path == yours:
            output.note("It was your default: deltamem-mlx config unset memory")
