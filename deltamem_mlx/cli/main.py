"""The Typer app: which commands there are, and how errors leave the process.

Command modules are light: they import mlx, mlx-lm and the library inside the function that runs,
so that `--help` answers at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from deltamem_mlx._version import __version__
from deltamem_mlx.cli.frame import errors, launched, output

# name of the command -> "module:attribute": its function, or a Typer app with commands of its own
COMMANDS: dict[str, str] = {
    "generate": "deltamem_mlx.cli.generate:generate",
    "remember": "deltamem_mlx.cli.remember:remember",
    "chat": "deltamem_mlx.cli.chat.command:chat",
    "memories": "deltamem_mlx.cli.memories.app:app",
    "inspect": "deltamem_mlx.cli.inspect:inspect",
    "serve": "deltamem_mlx.cli.serve:serve",
    "config": "deltamem_mlx.cli.config:config",
    "demo": "deltamem_mlx.cli.demo:demo",
    "train": "deltamem_mlx.cli.train:train",
    "eval": "deltamem_mlx.cli.eval.app:app",
    "bench": "deltamem_mlx.cli.bench:bench",
    "convert": "deltamem_mlx.cli.convert:convert",
    "upload": "deltamem_mlx.cli.upload:upload",
}
ADAPTERS = {"train", "eval", "bench", "convert", "upload"}  # the rest is for every day


class CommandGroup(TyperGroup):
    """A group whose errors are sentences: see `frame.errors` for the texts and exit codes."""

    def list_commands(self, ctx: Any) -> list[str]:
        """In the order of ``COMMANDS``: Typer puts those with commands of their own last."""
        names = super().list_commands(ctx)
        return [*(n for n in COMMANDS if n in names), *(n for n in names if n not in COMMANDS)]

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


def register(target: typer.Typer, commands: dict[str, str]) -> None:
    """Adds commands to an app.

    Args:
        target (typer.Typer): The app.
        commands (dict[str, str]): Name -> ``module:attribute``, the attribute being a function that
          went through ``frame.command``, or a Typer app for a command with commands of its own.
    """
    for name, place in commands.items():
        module, attribute = place.split(":")
        found = getattr(import_module(module), attribute)
        panel = "Adapters" if name in ADAPTERS else "Every day"
        if isinstance(found, typer.Typer):
            target.add_typer(found, name=name, rich_help_panel=panel)
        else:
            target.command(name, rich_help_panel=panel)(found)


register(app, COMMANDS)


def main() -> None:
    """Entry point of the console script and of `python -m deltamem_mlx`."""
    app(prog_name="deltamem-mlx")
