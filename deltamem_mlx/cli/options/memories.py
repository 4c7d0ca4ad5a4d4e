"""The arguments and options that the commands of `memories` share."""

import shlex
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.frame.defaults import defaults
from deltamem_mlx.cli.frame.errors import UsageError

Folder = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        metavar="FOLDER",
        help="Where the memories lie: the --memory-dir of a server, for instance. Default: a "
        "folder of yours, which `memories` names.",
        show_default=False,
    ),
]
Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Which memory; a server's by its key, or by the beginning of its id.",
        show_default=False,
    ),
]
DefaultName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME",
        help="Which memory, by its name or file; a server's by its key, or by the beginning of its "
        "id. Default: yours, which `config` shows.",
        show_default=False,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NewName = Annotated[
    str, typer.Argument(metavar="NEW_NAME", help="What it is to be called.", show_default=False)
]


def line(action: str, name: str, folder: Path | None = None) -> str:
    """What one would type to do this to a memory."""
    words = ["deltamem-mlx", "memories", action, name]
    return shlex.join(words if folder is None else [*words, "--folder", str(folder)])


def or_default(name: str | None, folder: Path | None = None) -> str:
    """A memory's name or file, or that of the user's default one.

    Raises:
        UsageError: If none was named, and there is no default, or another folder was asked for.
    """
    if name is not None:
        return name
    if folder is None and (default := defaults().get("memory")):
        return default.text
    raise UsageError("Say which memory: its name or file. `deltamem-mlx memories` lists them.")


def default_memory() -> Path | None:
    """The file of the user's default memory; None: there is none that can be told."""
    from deltamem_mlx.files.places import memory_path

    with suppress(UsageError, ValueError):
        if default := defaults().get("memory"):
            return memory_path(default.text)
    return None
