"""Long lists in messages: the first few lines, and how many more there are."""

from collections.abc import Sequence


def first_few(lines: Sequence[str], most: int = 4) -> list[str]:
    """The first ``most`` lines, and a line that counts the rest."""
    rest = len(lines) - most
    return [*lines[:most], f"and {rest} more"] if rest > 0 else list(lines)
