"""What the values of options mean that Typer takes for mere text."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.files import decoded, parse_json
from deltamem_mlx.problems import not_unicode

STANDARD_INPUT = "standard input"


def json_object(flag: str, text: str | None) -> dict[str, Any]:
    """The JSON object that was given; empty if nothing was.

    Raises:
        UsageError: If it is anything else.
    """
    try:
        values = parse_json(text or "{}")
    except ValueError as error:
        raise UsageError(f"{flag} is {error}.") from None
    if not isinstance(values, dict):
        raise UsageError(f"{flag}: expected a JSON object.")
    return values


def chosen_of(flag: str, given: Sequence[str] | None, allowed: Collection[str]) -> list[str]:
    """What was given, in the order of what there is; all of that if nothing was given.

    Raises:
        UsageError: If there is no such thing.
    """
    unknown = [name for name in given or [] if name not in allowed]
    if unknown:
        raise UsageError(
            f"{flag}: {', '.join(map(repr, unknown))}; expected one of {', '.join(allowed)}."
        )
    return [name for name in allowed if not given or name in given]


def check_texts(options: Mapping[str, Any], flags: Mapping[str, str]) -> None:
    """Refuses texts that no tokenizer takes, and names that no file of tensors can have.

    A file of text that is there may have any name, but nothing may be written below such a folder.

    Raises:
        UsageError: It names the flag, as ``flags`` has it for the option, and the place.
    """
    for name, value in options.items():
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str | Path) or not (why := not_unicode(str(text))):
                continue
            if not (text.is_file() if isinstance(text, Path) else os.path.exists(text)):
                raise UsageError(f"{flags[name]} {why}. Give it as UTF-8.")


def standard_input() -> str:
    """All of standard input.

    Raises:
        ValueError: If it is not UTF-8 text; the message names the line.
        UsageError: Under mlx.launch, which never ends it.
    """
    if launched.rank() is not None:
        raise UsageError("Under mlx.launch standard input has no end: give the text otherwise.")
    return decoded(sys.stdin.buffer.read(), STANDARD_INPUT)
