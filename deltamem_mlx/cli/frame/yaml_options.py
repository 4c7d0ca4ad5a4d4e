"""`--config FILE.yaml`: options from a file, below those on the command line.

Keys are flag names with dashes or underscores (`max-tokens`, `max_tokens`), values what one would
type after the flag; a list where a flag may be repeated; true or false for a switch.
"""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import typer

from deltamem_mlx.files import expanded, read_text
from deltamem_mlx.problems import shortened

# Never from a file: it would read another file, or not run at all.
COMMAND_LINE_ONLY = {"config", "help", "version"}
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MOST_BYTES = 16 << 20
# Of each pair one at most may be given.
EITHER = (("resume", "overwrite"), ("iters", "epochs"), ("seconds", "rounds"), ("data", "holdout"))


def use_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Callback of `--config`: makes the file's values the defaults of the command.

    Raises:
        typer.BadParameter: (exit code 2) For a file that is not there or not a YAML mapping, for
          keys that are no flags of this command (all of them, with what is close), for a flag
          given twice, and for values of the wrong shape.
    """
    if path is not None and not ctx.resilient_parsing:
        path = expanded(path)
        values = read_yaml(path)
        params = _params_by_key(ctx)
        _refuse_unknown(values, params, path, ctx)
        ctx.default_map = dict(ctx.default_map or {}) | _defaults(values, params, path)
    return path


def without_outdone(ctx: typer.Context, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a command without those of a file that one on the command line excludes."""

    def source(name: str) -> str:
        found = ctx.get_parameter_source(name)
        return "" if found is None else found.name

    plain = {parameter.name: parameter.default for parameter in ctx.command.params}
    outdone = {
        weaker: plain[weaker]
        for pair in EITHER
        for stronger, weaker in (pair, pair[::-1])
        if (source(stronger), source(weaker)) == ("COMMANDLINE", "DEFAULT_MAP")
    }
    return options | outdone


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a file, values as they stand there.

    Raises:
        typer.BadParameter: If there is no such file, or it is no YAML mapping.
    """
    try:
        text = read_text(path, _MOST_BYTES)
    except FileNotFoundError as error:
        why = "No such file or directory"
        raise typer.BadParameter(f"cannot read {str(path)!r}: {why}.") from error
    except OSError as error:
        why = error.strerror or str(error).rstrip(".")
        raise typer.BadParameter(f"cannot read {str(path)!r}: {why}.") from error
    except ValueError as error:
        raise typer.BadParameter(f"{str(path)!r} is not usable: {error}") from error
    return yaml_values(text, repr(str(path)))


def yaml_values(text: str, called: str = "it") -> dict[str, Any]:
    """The options in a text, values as they stand there.

    Raises:
        typer.BadParameter: If it is no YAML mapping; ``called`` names it.
    """
    import yaml

    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except RecursionError as error:
        raise typer.BadParameter(f"{called} is not usable: too deeply nested.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that is none
        why = " ".join(str(error).split())[:300].partition("; use sys.")[0]
        raise typer.BadParameter(f"{called} is not valid YAML: {why}") from error
    if node is None:
        return {}
    if not isinstance(node, yaml.MappingNode):
        raise typer.BadParameter(f"{called} holds no options; expected lines 'flag: value'.")
    values: dict[str, Any] = {}
    for key, value in node.value:
        name = str(key.value)
        if name in values:
            raise typer.BadParameter(f"{called} sets one option twice: {shortened(name)}.")
        values[name] = _value(value)
    return values


def _value(node: Any) -> object:
    """A node as it stands in the file: YAML would make a number of 0123 and of 12:30."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return {str(key.value): _value(value) for key, value in node.value}
    return None if node.tag == "tag:yaml.org,2002:null" else str(node.value)


def as_key(flag: str) -> str:
    """A flag or key, written with dashes or underscores, as the parameter's name."""
    return flag.lstrip("-").replace("-", "_")


def _params_by_key(ctx: typer.Context) -> dict[str, typer.CallbackParam]:
    """Every long flag of the command, as a key, with the parameter it sets."""
    return {
        as_key(flag): cast(typer.CallbackParam, param)  # Typer makes all of its own
        for param in ctx.command.params
        for flag in param.opts
        if flag.startswith("--") and as_key(flag) not in COMMAND_LINE_ONLY
    }


def _refuse_unknown(
    values: dict[str, Any],
    params: dict[str, typer.CallbackParam],
    path: Path,
    ctx: typer.Context,
) -> None:
    unknown = [key for key in values if as_key(key) not in params]
    if not unknown:
        return
    said = []
    for key in unknown:
        near = [match.replace("_", "-") for match in get_close_matches(as_key(key), params)]
        said.append(f"{key!r}" + (f" (close: {', '.join(near)})" if near else ""))
    more = ""
    if ctx.command.name == "config":
        from deltamem_mlx.files.places import defaults_file

        more = f" It shows the defaults of {defaults_file()}; -c is for commands that take these."
    raise typer.BadParameter(
        f"{str(path)!r} has keys that are no flags of '{ctx.command_path}': "
        f"{', '.join(said)}.{more}"
    )


def _defaults(
    values: dict[str, Any], params: dict[str, typer.CallbackParam], path: Path
) -> dict[str, Any]:
    """Values under the names that the parser looks defaults up by; null counts as not given."""
    defaults: dict[str, Any] = {}
    for key, value in values.items():
        param = params[as_key(key)]
        if param.name in defaults:
            flags = ", ".join(param.opts)
            raise typer.BadParameter(f"{str(path)!r} sets one option twice: {flags}.")
        if value is not None:
            defaults[str(param.name)] = _as_typed(key, value, param, path)
    return defaults


def _as_typed(key: str, value: object, param: typer.CallbackParam, path: Path) -> object:
    """The value as it would stand on the command line: text, a switch, or a list of texts."""
    if getattr(param, "is_flag", False):
        switch = _SWITCHES.get(value.lower()) if isinstance(value, str) else None
        if switch is None:
            raise typer.BadParameter(f"{str(path)!r}: {key!r} is a switch; expected true or false.")
        return switch
    items = value if isinstance(value, list) else [value]
    if len(items) != 1 and not param.multiple:
        found = "a list" if items else "an empty list"
        raise typer.BadParameter(f"{str(path)!r}: {key!r} takes one value, not {found}.")
    if any(isinstance(item, dict | list) or item is None for item in items):
        raise typer.BadParameter(
            f"{str(path)!r}: {key!r} is {shortened(value)}; expected text or a number."
        )
    return [str(item) for item in items] if param.multiple else str(items[0])
