"""`@command`: makes a function a command with examples and the flags every command has."""

import functools
import inspect
from collections.abc import Callable

from rich.markup import escape

from deltamem_mlx.cli.frame.parse import check_texts
from deltamem_mlx.cli.options.shared import Config, Debug, Quiet

COMMON = {"config": (Config, None), "quiet": (Quiet, False), "debug": (Debug, False)}


def command(*examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `--config`, `--quiet`, `--debug`, and examples at the end of the help text.

    The function does not see the added flags: `output` acts on quiet and debug.

    Args:
        examples (str): Command lines as one would type them.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        flags = {name: _flag(parameter) for name, parameter in signature.parameters.items()}

        @functools.wraps(function)
        def run(**options: object) -> None:
            check_texts(options, flags)
            function(**{name: value for name, value in options.items() if name not in COMMON})

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for name, (kind, value) in COMMON.items()
        ]
        run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
        run.__doc__ = help_text(function, *examples)
        return run

    return decorate


def _flag(parameter: inspect.Parameter) -> str:
    """What a person types for an option; the name of an argument.

    Typer keeps the first name of an annotated option where its default would be.
    """
    infos = getattr(parameter.annotation, "__metadata__", ())
    names = [name for info in infos for name in (info.default, *(info.param_decls or ()))]
    flags = (name for name in names if isinstance(name, str) and name.startswith("--"))
    return next(flags, parameter.name.upper()).partition("/")[0]


def help_text(function: Callable[..., None], *examples: str) -> str:
    """The docstring as a help text: paragraphs on one line each, so that the terminal wraps them.

    What is indented stays as it is. Square brackets are text, not markup.
    """
    paragraphs = escape(inspect.getdoc(function) or "").split("\n\n")
    joined = [text if "\n " in f"\n{text}" else text.replace("\n", " ") for text in paragraphs]
    if examples:
        joined += ["Examples:", "\n".join(f"  $ {escape(example)}" for example in examples)]
    return "\n\n".join(joined)
