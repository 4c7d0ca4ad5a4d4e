"""Reading a JSON object field by field; what is not as it has to be is refused by its name."""

import math
from collections.abc import Mapping

from ...problems import number, whole_number
from ..errors import refuse


class Fields:
    """The fields of a JSON object.

    Each method returns the field of this name, or ``default`` where there is none. Defaults have to
    fit as well: those of the server's own settings are checked by reading an empty object.

    Args:
        values (Mapping[str, object]): The object, without what is null.
    """

    def __init__(self, values: Mapping[str, object]):
        self.values = values

    def number(
        self, name: str, default: float, least: float = -math.inf, most: float = math.inf
    ) -> float:
        """A finite number in a range, as a float: MLX takes no integers beyond 64 bits."""
        value, field = self.values.get(name, default), number(least, most)
        if not isinstance(value, int | float) or not field.fits(value):
            refuse(name, field.expected)
        return float(value)

    def whole(self, name: str, default: int, least: int = 0, most: int = 2**31 - 1) -> int:
        """An integer in a range."""
        value, field = self.values.get(name, default), whole_number(least, most)
        if not isinstance(value, int) or not field.fits(value):
            refuse(name, field.expected)
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self.values.get(name, default)
        return value if isinstance(value, bool) else refuse(name, "true or false")

    def text(self, name: str, default: str) -> str:
        """A text."""
        value = self.values.get(name, default)
        return value if isinstance(value, str) else refuse(name, "text")

    def mapping(self, name: str, expected: str = "an object") -> dict[str, object]:
        """An object; empty where there is none."""
        value = self.values.get(name, {})
        return value if isinstance(value, dict) else refuse(name, expected)
