"""`deltamem-mlx config`: what stands in where a command line says nothing."""

from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.cli.frame.defaults import DefaultValue

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[set KEY VALUE | unset KEY]",
        help="Set a default, or take one away. KEY is a flag without its dashes.",
        show_default=False,
    ),
]


@command(
    "deltamem-mlx config",
    "deltamem-mlx config set memory work",
    "deltamem-mlx config unset memory",
    "DELTAMEM_MEMORY=work deltamem-mlx config",
)
def config(words: Words = None, json: o.Json = False) -> None:
    """Show your defaults, and where they and your memories lie; set them.

    generate, chat, remember, serve, inspect and memories take them where the command line says
    nothing: from the environment (DELTAMEM_MODEL, DELTAMEM_ADAPTER, DELTAMEM_MEMORY; an empty one
    counts as no default), else from a file with lines such as 'model: user/repo', which `config
    set` and you yourself can write.

    Model, adapter and memory belong together: a command line that names a model or an adapter
    takes none of them from here.
    """
    match words or []:
        case []:
            _show(json)
        case ["set", key, value]:
            _set(key, value, json)
        case ["unset", key]:
            _set(key, None, json)
        case ["set", _, _, *_]:
            raise UsageError("config set takes a key and a value: what has spaces goes in quotes.")
        case ["set" | "unset" as action, *_]:
            value = " VALUE" if action == "set" else ""
            raise UsageError(f"Expected: deltamem-mlx config {action} KEY{value}")
        case [other, *_]:
            raise UsageError(f"config: {other!r}; expected set KEY VALUE, unset KEY, or nothing.")


def _show(json: bool) -> None:
    from deltamem_mlx.cli.frame.defaults import KEYS, PAIR, as_flag, defaults
    from deltamem_mlx.files.places import defaults_file, memories_folder
    from deltamem_mlx.views.columns import fields

    found, file = defaults(), defaults_file()
    wrong = {key: why for key, one in found.items() if (why := _problem(key, one.text))}
    if json:
        values: dict[str, dict[str, str]] = {
            as_flag(key): {"value": default.text, "from": default.source}
            for key, default in found.items()
        }
        for key, why in wrong.items():
            values[as_flag(key)]["problem"] = why
        output.result_json(
            {"defaults": values, "file": str(file), "memories": str(memories_folder())}
        )
        return
    shown = {
        as_flag(key): _line(found[key], wrong.get(key)) if key in found else "not set"
        for key in KEYS
        if key in found or key in PAIR
    }
    there = "" if file.is_file() else " (not there yet)"
    places = {"file": f"{file}{there}", "memories": str(memories_folder())}
    output.result(fields(shown | places))
    if "memory" not in found:
        output.note("To set one: deltamem-mlx config set memory NAME")


def _line(default: "DefaultValue", wrong: str | None) -> str:
    invalid = f"   not valid: {wrong}" if wrong else ""
    return f"{default.text}   (from {default.source}){invalid}"


def _set(key: str, value: str | None, json: bool) -> None:
    """Writes the user's file; None takes the key away."""
    import os

    from deltamem_mlx.cli.frame.defaults import (
        as_flag,
        known_key,
        same_everywhere,
        variable,
        write_default,
    )
    from deltamem_mlx.cli.frame.naming import missing_memory
    from deltamem_mlx.files.places import memory_path

    key = known_key(key)
    if value is not None and (why := _problem(key, value)):
        raise UsageError(f"config set {as_flag(key)}: {why}")
    value = None if value is None else same_everywhere(key, value)
    changed = write_default(key, value)
    if json:
        output.result_json({"key": as_flag(key), "value": value, "changed": changed})
    elif value is None:
        output.result(f"{as_flag(key)} is no default now." if changed else _not_set(key))
    else:
        output.result(f"{as_flag(key)} is {value} now, where a command line says nothing.")
    if key == "memory" and value is not None and not (path := memory_path(value)).exists():
        missing = missing_memory(path)
        output.note(f"No {missing.called} yet: what is told first begins it. {missing.others}")
    if variable(key) in os.environ and key in ("model", "adapter", "memory"):
        output.note(f"{variable(key)} is set, and stands before it.")


def _not_set(key: str) -> str:
    from deltamem_mlx.cli.frame.defaults import as_flag

    return f"{as_flag(key)} was no default: nothing was changed."


def _problem(key: str, text: str) -> str:
    """Why a value is none for an option, as the command line would say it; empty: it is one."""
    from deltamem_mlx.cli.chat.command import chat
    from deltamem_mlx.cli.frame.defaults import problem_of

    return problem_of(chat, key, text)
