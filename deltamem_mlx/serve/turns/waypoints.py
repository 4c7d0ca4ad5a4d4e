"""Where within a cached prompt one can go on: mlx-lm's keys, cut there, and the memory as it was.

A prompt cache with a memory cannot be trimmed, as nothing is known of its states at earlier tokens.
So they are noted on the way, every so many tokens: a prompt that has only its beginning in common
with a cached one goes on from the last of these points in it.
"""

from collections.abc import Sequence
from itertools import pairwise

import mlx.core as mx

from ...memory.actions import memories
from ...session.context import can_cut, kv_caches
from ..provider import ExactPromptCache

EVERY = 512  # tokens; a call of fewer is slower for each of them
POINT = "point"  # a segment that ends where only the memory is noted
Memory = dict[int, tuple[mx.array | None, list[int]]]
Points = dict[int, Memory]  # by tokens


def memory_in(cache: list) -> Memory:
    """The memory in a prompt cache, layer by layer; nothing else of that is kept alive by it."""
    held = {i: (m.matrix, list(m.written)) for i, m in memories(cache).items()}
    mx.eval([matrix for matrix, _ in held.values() if matrix is not None])
    return held


def cut(segment: Sequence[int], begin: int) -> list[list[int]]:
    """A segment that begins at token ``begin`` of its prompt, cut at the points within it."""
    first = EVERY - begin % EVERY
    ends = [0, *range(first, len(segment), EVERY), len(segment)]
    return [list(segment[a:b]) for a, b in pairwise(ends)]


class Waypoints:
    """The points of the prompts that were cached last.

    Args:
        cache (ExactPromptCache): Where the prompts are.
        key (object): The model's, in the cache.
    """

    def __init__(self, cache: ExactPromptCache, key: object):
        self._cache, self._key = cache, key
        self._known: dict[tuple[int, ...], Points] = {}  # the oldest first

    def note(self, tokens: Sequence[int], points: Points) -> None:
        """Keep the points of a prompt that is cached."""
        name = tuple(tokens)
        self._known.pop(name, None)
        self._known[name] = points
        while len(self._known) > self._cache.max_size:
            del self._known[next(iter(self._known))]

    def of(self, tokens: Sequence[int]) -> Points:
        """The points of a cached prompt that begins like this, within these tokens."""
        found: Points = {}
        for known, points in self._known.items():
            shared = _shared(known, tokens)
            found |= {n: memory for n, memory in points.items() if n <= shared}
        return found

    def fetch(self, prompt: Sequence[int], begun: int) -> tuple[list, int] | None:
        """A prompt cache that holds more than the first ``begun`` tokens of a prompt, but not all,
        and how many; None: there is none."""
        best, name = begun, None
        for known, points in self._known.items():
            shared = min(_shared(known, prompt), len(prompt) - 1)
            most = max((n for n in points if n <= shared), default=0)
            if most > best:
                best, name = most, known
        if name is None:
            return None
        cache, rest = self._cache.fetch_nearest_cache(self._key, [*name, 0])
        if cache is None or len(rest) > 1 or not _trim(cache, len(name) - best):
            del self._known[name]  # it has left the cache, or its keys cannot be cut
            return self.fetch(prompt, begun)
        held = self._known[name][best]
        for i, memory in memories(cache).items():
            memory.matrix, written = held[i]
            memory.written = list(written)
        return cache, best


def _trim(cache: list, tokens: int) -> bool:
    return can_cut(cache) and all(kv.trim(tokens) == tokens for kv in kv_caches(cache))


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
