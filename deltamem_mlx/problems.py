"""What messages say of many problems, and of values that may be anything."""

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Number
from typing import NamedTuple


class Problem(NamedTuple):
    """One thing wrong with a value.

    Attributes:
        field (str): Where in the value; empty: all of it.
        error (type[Exception]): What it calls for.
        what (str): What is there, and in brackets what was expected.
    """

    field: str
    error: type[Exception]
    what: str


def raise_problems(problems: Sequence[str], what: str, expected: str) -> None:
    """Raises one ValueError for all problems, the first ten shown; nothing if there are none."""
    if problems:
        shown = "\n".join(f"  {line}" for line in first_few(problems, 10))
        raise ValueError(f"{what}:\n{shown}\n{expected}".rstrip())


def as_whole(name: str, value: object) -> int:
    """The integer that an argument is.

    Raises:
        TypeError: If it is none: text, a fraction, true or false.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]  # what else it is, it says
    except TypeError:
        pass
    raise TypeError(f"{name} is {shortened(value)}, expected a whole number.")


def differing(there: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """The names, in order, of what is not the same in both."""
    return [name for name in sorted({*there, *now}) if there.get(name) != now.get(name)]


def kind_of(value: object) -> str:
    """What a value is, in the words of JSON."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "true or false"
    kinds = {
        str: "text",
        bytes: "bytes",
        Mapping: "an object",
        Sequence: "a list",
        Number: "a number",
    }
    found = (name for kind, name in kinds.items() if isinstance(value, kind))
    return next(found, None) or shortened(value)


def first_few(lines: Sequence[str], most: int = 4) -> list[str]:
    """The first ``most`` lines, and a line that counts the rest."""
    rest = len(lines) - most
    return [*lines[:most], f"and {rest} more"] if rest > 0 else list(lines)


def shortened(value: object, most: int = 80) -> str:
    """A value as Python writes it, on one line of at most ``most`` characters."""
    try:
        # A long text or number is cut before it is written out.
        if isinstance(value, str | bytes):
            value = value[: most + 1]
        elif isinstance(value, int) and value.bit_length() > 4 * most:
            return f"a number of {value.bit_length()} bits"
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError, MemoryError):
        text = f"a {type(value).__name__}"
    return text if len(text) <= most else text[: most - 1] + "…"


def not_unicode(text: str) -> str:
    """Why a text is no Unicode text, which no tokenizer and no file takes; empty: it is.

    Half a character comes from JSON that was cut (``"\\ud83d"``), a byte from a command line.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code, place = ord(text[error.start]), f"at character {error.start + 1}"
        if 0xDC80 <= code <= 0xDCFF:
            return f"holds the byte 0x{code - 0xDC00:02x}, which is not UTF-8, {place}"
        return f"holds half a character (U+{code:04X}) {place}"
    return ""


def unusable_parts(value: object, field: str = "", levels: int = 100) -> Iterator[tuple[str, str]]:
    """Yields (field, why) for what in a value as JSON has them no template or tokenizer can use."""
    if isinstance(value, str):
        if why := not_unicode(value):
            yield field, why
    elif isinstance(value, Mapping | list | tuple):
        if not levels:
            yield "", "is nested more than 100 levels deep"
            return
        if isinstance(value, Mapping):
            yield from (
                (field, f"a name in it {why}") for name in value if (why := not_unicode(str(name)))
            )
            parts = [(f"{field}.{name}", part) for name, part in value.items()]
        else:
            parts = [(f"{field}[{i}]", part) for i, part in enumerate(value)]
        for name, part in parts:
            yield from unusable_parts(part, name, levels - 1)


class Field(NamedTuple):
    """What a value read from a file has to be.

    Attributes:
        fits (Callable[[object], bool]): Whether a value is that.
        expected (str): The same in words.
    """

    fits: Callable[[object], bool]
    expected: str


def text_field(most: int) -> Field:
    """A text of at most ``most`` characters."""
    return Field(lambda v: isinstance(v, str) and len(v) <= most, f"text of at most {most:,}")


def whole_number(least: int = 0, most: int = 2**31 - 1) -> Field:
    """An integer in a range, by default what MLX keeps in an int32."""
    return Field(
        lambda v: isinstance(v, int) and not isinstance(v, bool) and least <= v <= most,
        f"an integer from {least:,} to {most:,}",
    )


def number(least: float = -math.inf, most: float = math.inf) -> Field:
    """A finite number in a range."""
    return Field(
        lambda v: (
            isinstance(v, int | float)
            and not isinstance(v, bool)
            and abs(v) < 1e308
            and least <= v <= most
        ),
        f"a number{_range(least, most)}",
    )


def _range(least: float, most: float) -> str:
    if math.isinf(most):
        return "" if math.isinf(least) else f" of at least {least:g}"
    return f" from {least:g} to {most:g}"


def list_of(field: Field, most: int) -> Field:
    """A list of at most ``most`` values that are each ``field``."""
    return Field(
        lambda v: isinstance(v, list) and len(v) <= most and all(map(field.fits, v)),
        f"a list, each {field.expected}",
    )


def optional(field: Field) -> Field:
    """The same, or null."""
    return Field(lambda v: v is None or field.fits(v), f"{field.expected}, or null")


MAPPING = Field(lambda v: isinstance(v, dict), "an object")
FLAG = Field(lambda v: isinstance(v, bool), "true or false")


def misfits(values: Mapping[str, object], schema: Mapping[str, Field]) -> list[str]:
    """What is missing in ``values`` or is not as ``schema`` has it, a line each."""
    return [
        f"{name}: {shortened(values[name]) if name in values else 'missing'}, expected {field[1]}"
        for name, field in schema.items()
        if name not in values or not field.fits(values[name])
    ]
