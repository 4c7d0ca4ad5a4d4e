"""The last turns that a memory file keeps, and how much of each still lies in its states.

Neither a model nor text is needed: a file has none of the latter.
"""

from dataclasses import dataclass

import numpy as np

from .contents import MemoryFile
from .measures import share_left


@dataclass(frozen=True)
class KeptTurn:
    """One of the last turns of a memory.

    Attributes:
        saved (str): When it was written, UTC in ISO format. Of files of former versions: when it
            was saved, or a later turn together with it.
        tokens (int): How many it wrote, over all conversations; less than 0: it emptied the memory.
        messages (int): How many it told that the memory had not been told before.
        answers (int): How many of those were answers.
        source (str): The name of the file that it told; empty: it told none, or that is not known.
        left (float): How much of the change that it made to the states they still have: 1 is all
            of it, 0 none; more where it was told again, less than 0 where the opposite was.
    """

    saved: str
    tokens: int
    messages: int
    answers: int
    source: str
    left: float


def kept_turns(memory: MemoryFile) -> list[KeptTurn]:
    """The last turns of a memory file, the oldest first.

    Raises:
        ValueError: If what is kept of them is damaged.
    """
    found, saved = [memory], [memory.created]
    for _ in memory.history:
        found.append(found[-1].before())
    for older in found[1:]:
        saved.append(older.created or saved[-1])
    found.reverse()
    saved.reverse()
    states = [_flat(one) for one in found]
    return [
        KeptTurn(
            saved=turn.at or saved[n + 1],
            tokens=sum(after.tokens_written) - sum(before.tokens_written),
            messages=turn.added,
            answers=_answers(after) - turn.turns,
            source=turn.source,
            left=share_left(states[n], states[n + 1], states[-1]),
        )
        for n, (turn, before, after) in enumerate(
            zip(memory.history, found, found[1:], strict=False)
        )
    ]


def _answers(memory: MemoryFile) -> int:
    return memory.told.turns if memory.told is not None else 0


def _flat(memory: MemoryFile) -> np.ndarray:
    parts = [memory.states[i].ravel() for i in sorted(memory.states)]
    return np.concatenate(parts).astype(np.float64)
