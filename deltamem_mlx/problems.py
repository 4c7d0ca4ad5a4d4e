"""What messages say of many problems, and of values that may be anything."""

from collections.abc import Sequence


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
