"""How many tokens of prompts are fed at a time, so that running answers go on meanwhile."""

GAP = 0.25
"""Seconds at most, by aim, between two tokens of an answer while a prompt of another is fed."""

_LEAST = 16


class Pace:
    """The size of a prefill step that takes no longer than `GAP`, found by what steps took.

    Args:
        most (int): The size where nobody waits.
    """

    def __init__(self, most: int):
        self._most = most
        self._size = min(most, 4 * _LEAST)

    @property
    def present(self) -> int:
        """Tokens of one prompt at a time, as found by now; the same in all processes of a model."""
        return self._size

    @present.setter
    def present(self, size: int) -> None:
        self._size = size

    def size(self, prompts: int, *, waited_for: bool) -> int:
        """Tokens to feed of each of so many prompts, while answers are waited for or not."""
        return max(1, self._size // max(1, prompts)) if waited_for else self._most

    def took(self, seconds: float) -> None:
        """Learn from a full step of the size that was given."""
        factor = min(2.0, 0.8 * GAP / max(seconds, 1e-6))
        if not 0.6 < factor < 1.1:
            self._size = max(_LEAST, min(self._most, int(self._size * factor)))
