"""The options of `train` that are about the package's own course."""

from typing import Annotated

import typer

_PANEL = "Data and output"

OwnCourse = Annotated[
    bool,
    typer.Option(
        "--course",
        rich_help_panel=_PANEL,
        help="The package's own course with --data as well: your conversations among its own.",
    ),
]
Hours = Annotated[
    float | None,
    typer.Option(
        "--hours",
        rich_help_panel=_PANEL,
        help="How long a course may take, about.  \\[default: 3]",
        show_default=False,
    ),
]
