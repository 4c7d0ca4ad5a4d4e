"""How far parts of one sequence of fingerprints are the beginning of another, in linear time."""

from collections.abc import Sequence


def shared_with(beginning: Sequence[str], whole: Sequence[str]) -> list[int]:
    """For each place of ``whole``, with how many of ``beginning`` it goes on there.

    The Z function: a comparison at each place would take quadratic time, which all others wait.
    """
    both: list[str | None] = [*beginning, None, *whole]
    found = [0] * len(both)
    left = right = 0  # of the part that reaches furthest
    for i in range(1, len(both)):
        same = min(right - i, found[i - left]) if i < right else 0
        while i + same < len(both) and both[same] == both[i + same]:
            same += 1
        found[i] = same
        if i + same > right:
            left, right = i, i + same
    return found[len(beginning) + 1 :]
