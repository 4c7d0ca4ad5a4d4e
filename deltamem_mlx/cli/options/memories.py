"""The arguments and options that the commands of `memories` share."""

from pathlib import Path
from typing import Annotated

import typer

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
NewName = Annotated[
    str, typer.Argument(metavar="NEW_NAME", help="What it is to be called.", show_default=False)
]
