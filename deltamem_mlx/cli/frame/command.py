"""`@command`: makes a function a command with examples and the flags every command has."""

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import typer
from rich.markup import escape

from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.defaults import with_defaults
from deltamem_mlx.cli.frame.parse import check_texts
from deltamem_mlx.cli.frame.yaml_options import without_outdone
from deltamem_mlx.cli.options.shared import Config, Debug, Quiet
from deltamem_mlx.files import expanded

COMMON = {"config": (Config, None), "quiet": (Quiet, False), "debug": (Debug, False)}


def command(
    *examples: str, defaults: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `--config`, `--quiet`, `--debug`, and examples at the end of the help text.

    The function does not see the added flags: `output` acts on quiet and debug. A parameter that
    is a dataclass stands for options: its fields. One without an option for a model that is spread
    over processes is for one process.

    Args:
        examples (str): Command lines as one would type them.
        defaults (bool): What is not given is what the user wants everywhere (`frame.defaults`).
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(function, eval_str=True)
        groups = {p.name: p.annotation for p in signature.parameters.values() if _is_group(p)}
        parameters = [
            option
            for parameter in signature.parameters.values()
            for option in (_options(parameter.annotation) if _is_group(parameter) else [parameter])
        ]
        flags = {parameter.name: _flag(parameter) for parameter in parameters}
        launches = not {"pipeline", "tensor_parallel"}.isdisjoint(flags)

        @functools.wraps(function)
        def run(ctx: typer.Context | None = None, **options: Any) -> None:
            if not launches:
                launched.refuse_several()
            if ctx is not None:
                options = without_outdone(ctx, options)
                options = with_defaults(ctx, options) if defaults else options
            check_texts(options, flags)
            own = {name: _at_home(v) for name, v in options.items() if name not in COMMON}
            for name, group in groups.items():
                own[name] = group(**{field.name: own.pop(field.name) for field in fields(group)})
            function(**own)

        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for name, (kind, value) in COMMON.items()
        ]
        context = inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
        shown = signature.replace(parameters=[*parameters, *added, context])
        vars(run)["__signature__"] = shown
        run.__doc__ = help_text(function, *examples)
        return run

    return decorate


def _at_home(value: object) -> object:
    """The value with `~` expanded, if a path: shells do that to some forms of a flag only."""
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    return expanded(value) if isinstance(value, Path) else value


def _is_group(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a dataclass, which stands for the options that are its fields."""
    return isinstance(parameter.annotation, type) and is_dataclass(parameter.annotation)


def _options(group: type[Any]) -> list[inspect.Parameter]:
    """The fields of a dataclass as the parameters of a command."""
    kinds = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
            annotation=kinds[field.name],
        )
        for field in fields(group)
    ]


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
        shown = "\n".join(escape(_pasteable(example)) for example in examples)
        # Where they follow the first paragraph, Typer would take their indentation away, were it
        # not for a line without: markup of nothing begins it.
        joined += ["Examples:", shown if len(joined) > 1 else f"[bold][/]{shown}"]
    return "\n\n".join(joined)


def _pasteable(example: str, width: int = 76) -> str:
    """A command line in lines that fit a terminal, each but the last ending in a backslash."""
    words = re.findall(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""", example)
    lines = ["  $"]
    for word in words:
        if len(lines[-1]) + len(word) + 3 > width and len(lines[-1]) > 6:
            lines[-1] += " \\"
            lines.append("     ")
        lines[-1] += f" {word}"
    return "\n".join(lines)
