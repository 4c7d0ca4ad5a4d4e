"""What a user wants everywhere: from a file in a folder of theirs, and from the environment.

They stand in where neither the command line nor `--config` says anything. The environment is
stronger than the file; whoever names a model or an adapter leaves the weaker ones' model, adapter
and memory, which belong together.
"""

import os
import re
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import typer
from typer.main import get_command

from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.yaml_options import as_key, read_yaml, yaml_values
from deltamem_mlx.problems import shortened

PAIR = ("model", "adapter", "memory")
KEYS = (*PAIR, "system_prompt", "max_tokens", "temp", "top_p", "top_k", "min_p", "markdown")


class DefaultValue(NamedTuple):
    """A default as it was written, and where."""

    text: str
    source: str


def variable(key: str) -> str:
    """The environment variable of a key; model, adapter and memory have one."""
    return f"DELTAMEM_{key.upper()}"


def defaults() -> dict[str, DefaultValue]:
    """What is set, by key.

    Raises:
        UsageError: If the file cannot be used.
    """
    from deltamem_mlx.files.places import defaults_file

    path = defaults_file()
    found = _of_file(path) if path.is_file() else {}
    given = {key: os.environ[variable(key)] for key in PAIR if variable(key) in os.environ}
    for key in PAIR if given.get("model") or given.get("adapter") else given:
        found.pop(key, None)
    # One that is empty takes away what the file says.
    return found | {k: DefaultValue(text, variable(k)) for k, text in given.items() if text}


def with_defaults(ctx: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command, with defaults in the place of those that were not given.

    Raises:
        UsageError: If one of them cannot be used.
    """
    open_ = {name for name in options if _not_given(ctx, name)}
    found = {key: default for key, default in defaults().items() if key in open_}
    if any(key in options and key not in open_ for key in ("model", "adapter")):
        found = {key: default for key, default in found.items() if key not in PAIR}
    parameters = {parameter.name: parameter for parameter in ctx.command.params}
    for key, default in found.items():
        try:
            options[key] = parameters[key].process_value(ctx, default.text)
        except typer.BadParameter as error:
            why = _why(default.text, error)
            raise UsageError(f"{default.source}: {as_flag(key)}: {why}") from None
    return options


def problem_of(command: Callable[..., None], key: str, text: str) -> str:
    """Why a default is no value of a command's option, in a sentence; empty: it is one."""
    alone = typer.Typer(add_completion=False)
    alone.command()(command)
    whole = get_command(alone)
    parameter = next(one for one in whole.params if one.name == key)
    context = typer.Context(whole, info_name=whole.name)
    try:
        parameter.process_value(context, text)
    except typer.BadParameter as error:
        return _why(text, error)
    return ""


def _why(text: str, error: typer.BadParameter) -> str:
    """What is wrong with a value, which is quoted."""
    said = shortened(text)
    return error.message if said in error.message else f"{said}: {error.message}"


def known_key(name: str) -> str:
    """The key that a name stands for, with dashes or underscores.

    Raises:
        UsageError: If there is no such default.
    """
    if (key := as_key(name)) in KEYS:
        return key
    near = get_close_matches(key, KEYS, 1) or KEYS
    raise UsageError(f"No default {shortened(name)}; expected {', '.join(map(as_flag, near))}.")


def write_default(key: str, text: str | None) -> bool:
    """Set a default in the user's file, or take it away; the other lines stay as they are.

    Returns:
        bool: Whether there was anything to change.

    Raises:
        UsageError: If the file cannot be used, or is laid out so that a line cannot be changed.
    """
    from deltamem_mlx.files import read_text, write_text
    from deltamem_mlx.files.places import defaults_file

    path = defaults_file()
    before = _of_file(path) if path.is_file() else {}
    if text is None and key not in before:
        return False
    line = re.compile(rf"(?:--)?{key.replace('_', '[-_]')}[ \t]*:.*")
    lines = read_text(path).splitlines() if path.is_file() else []
    places = [number for number, found in enumerate(lines) if line.match(found)]
    new = [] if text is None else [_as_yaml(key, text)]
    lines[slice(places[0], places[0] + 1) if places else slice(len(lines), None)] = new
    written = "".join(f"{one}\n" for one in lines)
    expected = {name: default.text for name, default in before.items() if name != key}
    expected |= {} if text is None else {key: text}
    if _texts_in(written) != expected:
        raise UsageError(f"{str(path)!r} is laid out so that {as_flag(key)} is to be edited there.")
    write_text(path, written)
    return True


def same_everywhere(key: str, text: str) -> str:
    """A value that means the same in every folder: a path of this one is written as a whole."""
    from deltamem_mlx.files.places import is_name
    from deltamem_mlx.hub import looks_like_path
    from deltamem_mlx.model.names import BUILTIN

    if key not in PAIR or text == BUILTIN or (key == "memory" and is_name(text)):
        return text
    path = Path(text).expanduser()
    is_path = key == "memory" or looks_like_path(text) or path.exists()
    return str(path.absolute()) if is_path else text


def _as_yaml(key: str, text: str) -> str:
    """A line of the file: as people would write it, in quotes where it would be read otherwise."""
    import yaml

    plain = f"{as_flag(key)}: {text}"
    if _texts_in(plain) == {key: text}:
        return plain
    said = yaml.safe_dump({as_flag(key): text}, default_style='"', width=1 << 20)
    return f"{as_flag(key)}: {said.partition(':')[2].strip()}"


def _texts_in(text: str) -> dict[str, str]:
    """The options in a text as YAML has them; none where it is no YAML."""
    try:
        values = yaml_values(text)
    except (ValueError, typer.BadParameter):
        return {}
    return {as_key(name): str(value) for name, value in values.items() if value is not None}


def as_flag(key: str) -> str:
    """A key as it is written: a flag without its dashes."""
    return key.replace("_", "-")


def _not_given(ctx: typer.Context, name: str) -> bool:
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "DEFAULT"


def _of_file(path: Path) -> dict[str, DefaultValue]:
    try:
        values = read_yaml(path)
    except typer.BadParameter as error:
        raise UsageError(f"Your defaults: {error.message}") from None
    found: dict[str, DefaultValue] = {}
    for name, value in values.items():
        key = as_key(name)
        if key not in KEYS:
            near = get_close_matches(key, KEYS, 1) or KEYS
            raise UsageError(
                f"The defaults in {str(path)!r} have no {shortened(name)}; expected "
                f"{', '.join(map(as_flag, near))}."
            )
        if isinstance(value, dict | list):
            raise UsageError(f"The defaults in {str(path)!r}: {name} takes one value.")
        if value is not None:
            found[key] = DefaultValue(str(value), str(path))
    return found
