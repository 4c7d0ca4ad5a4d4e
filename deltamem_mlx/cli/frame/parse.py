"""What the values of options mean that Typer takes for mere text."""

import json
from collections.abc import Collection, Sequence

from deltamem_mlx.cli.frame.errors import UsageError


def json_object(flag: str, text: str | None) -> dict[str, object]:
    """The JSON object that was given; empty if nothing was.

    Raises:
        UsageError: If it is anything else.
    """
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise UsageError(f"{flag} is not valid JSON: {error}") from error
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
