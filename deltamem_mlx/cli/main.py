"""The Typer app: which commands there are, and how errors leave the process.

A command's module is imported when the command is called, and imports mlx, mlx-lm and the library
inside the function that runs: `--help` answers at once.
"""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltamem_mlx._version import __version__
from deltamem_mlx.cli.frame import errors, launched, output
from deltamem_mlx.cli.frame.lazy import Listed, register

_DAILY, _ADAPTERS = "Every day", "Adapters"
_CLI = "deltamem_mlx.cli"

COMMANDS = {
    "generate": Listed(f"{_CLI}.generate:generate", "Answer one prompt.", _DAILY),
    "remember": Listed(f"{_CLI}.remember:remember", "Write files into a memory.", _DAILY),
    "chat": Listed(f"{_CLI}.chat.command:chat", "Chat with a model that remembers.", _DAILY),
    "memories": Listed(
        f"{_CLI}.memories.app:app",
        "List, show, ask, rename, copy, undo, redo and remove memories; take them out and in.",
        _DAILY,
    ),
    "inspect": Listed(f"{_CLI}.inspect:inspect", "Look into an adapter or a memory.", _DAILY),
    "serve": Listed(
        f"{_CLI}.serve:serve",
        "Serve a model to OpenAI's and Anthropic's clients, with memories that stay.",
        _DAILY,
    ),
    "config": Listed(
        f"{_CLI}.config:config",
        "Show your defaults, and where they and your memories lie; set them.",
        _DAILY,
    ),
    "demo": Listed(
        f"{_CLI}.demo:demo",
        "Show on the built-in pair what a memory does; needs no network and about a minute.",
        _DAILY,
    ),
    "train": Listed(
        f"{_CLI}.train:train",
        "Make an adapter: without any data, or from conversations.",
        _ADAPTERS,
    ),
    "eval": Listed(
        f"{_CLI}.eval.app:app",
        "Measure an adapter: each task with the memory and without, on the same questions.",
        _ADAPTERS,
    ),
    "bench": Listed(f"{_CLI}.bench:bench", "Measure what a memory costs.", _ADAPTERS),
    "convert": Listed(f"{_CLI}.convert:convert", "Write an adapter in another form.", _ADAPTERS),
    "upload": Listed(
        f"{_CLI}.upload:upload", "Upload an adapter to the Hugging Face Hub.", _ADAPTERS
    ),
}


class CommandGroup(TyperGroup):
    """A group whose errors are sentences: see `frame.errors` for the texts and exit codes."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> int:
        """Runs the command line; leaves the process with its exit code if `standalone_mode`."""
        output.reset()
        if launched.follows():
            launched.be_silent()
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **extra)
        except Exception as error:
            code = launched.report(error)
        code = code if isinstance(code, int) else 0
        if code == errors.INTERRUPTED:
            output.note("Interrupted.")
        if standalone_mode:
            sys.exit(code)
        return code


app = typer.Typer(
    name="deltamem-mlx",
    cls=CommandGroup,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        output.result(f"deltamem-mlx {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Language models that remember: δ-mem for mlx-lm.

    A δ-mem adapter gives a model a memory of fixed size. What was told stays when the context goes.

    Each command explains itself: deltamem-mlx COMMAND --help
    """
    if ctx.invoked_subcommand is None:
        # With rich this prints by itself and returns nothing.
        output.result(ctx.get_help(), end="")


register(app, COMMANDS)


def main() -> None:
    """Entry point of the console script and of `python -m deltamem_mlx`."""
    app(prog_name="deltamem-mlx")
