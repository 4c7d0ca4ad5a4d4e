"""`memories rename`, `copy`, `export` and `import`: nothing is replaced unasked."""

from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.options import memories as m

NameAndTarget = Annotated[
    list[str],
    typer.Argument(
        metavar="[NAME] FILE.safetensors",
        help="Which memory, by default yours, and the file to write, or a folder.",
        show_default=False,
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")]
Taken = Annotated[
    Path,
    typer.Argument(metavar="FILE.safetensors", help="A memory file.", show_default=False),
]
GivenName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="What it is to be called; by default as the file.", show_default=False
    ),
]


@command("deltamem-mlx memories rename anna anna-2025")
def rename(name: m.Name, new_name: m.NewName, folder: m.Folder = None) -> None:
    """Give a memory another name."""
    from deltamem_mlx.memory.shelf import MemoryShelf

    MemoryShelf(folder).rename(name, new_name)
    output.result(f"{name} is called {new_name} now.")


@command("deltamem-mlx memories copy anna anna-before-the-move")
def copy(name: m.Name, new_name: m.NewName, folder: m.Folder = None) -> None:
    """Copy a memory: what is told to one of them then, the other does not know."""
    from deltamem_mlx.memory.shelf import MemoryShelf

    MemoryShelf(folder).copy(name, new_name)
    output.result(f"{new_name} is a copy of {name}.")


@command(
    "deltamem-mlx memories export ~/mine.safetensors",
    "deltamem-mlx memories export anna ~/anna.safetensors",
    "deltamem-mlx memories export KEY anna.safetensors --folder memories",
)
def export(names: NameAndTarget, folder: m.Folder = None, overwrite: Overwrite = False) -> None:
    """Copy a memory to a file elsewhere."""
    from deltamem_mlx.files.places import is_name
    from deltamem_mlx.memory.shelf import MemoryShelf

    if len(names) > 2:
        raise UsageError(f"Expected a memory and a file; found {len(names)} names.")
    *named, target = names
    if not named and (folder is not None or (is_name(target) and not Path(target).is_dir())):
        raise UsageError(
            f"The file to write is missing: deltamem-mlx memories export {target} FILE.safetensors"
        )
    name = m.or_default(named[0] if named else None, folder)
    try:
        written = MemoryShelf(folder).export(name, target, overwrite=overwrite)
    except FileExistsError as error:
        raise FileExistsError(f"{error} To replace it: --overwrite") from None
    output.result(f"{name} is in {written} as well.")


@command(
    "deltamem-mlx memories import ~/anna.safetensors",
    "deltamem-mlx memories import ~/anna.safetensors anna-of-the-laptop",
)
def take_in(file: Taken, name: GivenName = None, folder: m.Folder = None) -> None:
    """Copy a memory file into the folder of memories."""
    from deltamem_mlx.memory.shelf import MemoryShelf

    shelf = MemoryShelf(folder)
    by_key = shelf.goes_by_keys
    written = shelf.take_in(file, name)
    if by_key:
        called = file.stem if name is None else name
        output.result(
            f"{file} is the memory of the key {called} now, for the server of this folder."
        )
    else:
        output.result(f"{file} is the memory {written.stem} now.")
