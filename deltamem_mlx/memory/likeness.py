"""How like a memory still is to what it was after each of its last turns."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .contents import MemoryFile
from .measures import similarities


class PastLikeness(NamedTuple):
    """A memory as it was right after one of its last turns, and now.

    Attributes:
        then (MemoryFile): As it was.
        similarity (float): Cosine similarity of the states now to those then, the mean over
          layers: 1 is the same.
    """

    then: MemoryFile
    similarity: float


def likenesses(saved: MemoryFile) -> list[PastLikeness]:
    """For each turn of the history, the last one first.

    Turns whose states cannot be had again, and those before them, are left out.
    """
    thens = list(_back_through(saved))
    states = np.stack([_flat(then) for then in thens]) if thens else np.zeros((0, 1, 1))
    return [
        PastLikeness(then, float(similarity))
        for then, similarity in zip(thens, similarities(states)[:1].ravel(), strict=True)
    ]


def _back_through(saved: MemoryFile) -> Iterator[MemoryFile]:
    """The memory after each of its last turns, as far as they are kept."""
    for _ in range(len(saved.history)):
        yield saved
        try:
            saved = saved.before(1)
        except ValueError:
            return


def _flat(saved: MemoryFile) -> np.ndarray:
    """[L, N], layers in order."""
    return np.stack([saved.states[i].ravel() for i in sorted(saved.states)])
