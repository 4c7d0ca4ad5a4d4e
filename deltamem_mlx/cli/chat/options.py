"""What `deltamem-mlx chat` can be asked for."""

from dataclasses import dataclass
from typing import Annotated

import typer

from deltamem_mlx.cli.frame.session import AnsweringOptions
from deltamem_mlx.cli.options import shared as o

MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        min=1,
        help="Forget the context when it would exceed this many tokens; the newest turns stay.",
        rich_help_panel=o.CONTEXT,
    ),
]
Markdown = Annotated[
    bool,
    typer.Option("--markdown", help="In a terminal: lay answers out as Markdown, block by block."),
]
Web = Annotated[
    bool,
    typer.Option(
        "--web",
        help="In the browser: open the page of `serve`, with your memories, for you alone.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class ChatOptions(AnsweringOptions):
    """What `chat` was asked for."""

    markdown: Markdown = False
    web: Web = False
    max_context: MaxContext = None
