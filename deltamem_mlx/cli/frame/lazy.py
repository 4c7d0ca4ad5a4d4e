"""Commands that are listed before they are imported: `--help` waits for those it is about only."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar, NamedTuple

import typer
from typer.core import TyperCommand
from typer.main import get_command


class Listed(NamedTuple):
    """A command as a list of commands shows it.

    Attributes:
        place (str): ``module:attribute``, the attribute being a function that went through
          ``frame.command``, or a Typer app for a command with commands of its own.
        summary (str): The first paragraph of its help.
        panel (str): Under which heading it stands; None: of no own.
    """

    place: str
    summary: str
    panel: str | None = None


class LazyCommand(TyperCommand):
    """A command that is imported when it is called."""

    place: ClassVar[str]

    def load(self) -> Any:
        """The command itself."""
        module, attribute = self.place.split(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            return get_command(found)
        alone = typer.Typer(add_completion=False, rich_markup_mode=self.rich_markup_mode)
        alone.command(self.name)(found)
        return get_command(alone)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> Any:
        """The context of the command itself, which is what is invoked."""
        return self.load().make_context(info_name, args, parent, **extra)


def register(target: typer.Typer, commands: Mapping[str, Listed]) -> None:
    """Adds commands to an app, by name."""
    for name, listed in commands.items():
        added = target.command(
            name, cls=_at(listed.place), help=listed.summary, rich_help_panel=listed.panel
        )
        added(_nothing)


def _at(where: str) -> type[LazyCommand]:
    class Placed(LazyCommand):
        place = where

    return Placed


def _nothing() -> None:
    """What Typer takes for the function of a command that is not imported yet."""
