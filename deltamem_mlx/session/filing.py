"""A conversation as a memory file that keeps its last turns; one that goes on from such a file."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import mlx.core as mx
import numpy as np

from ..memory.actions import memories
from ..memory.contents import MemoryFile
from ..memory.told import Fingerprints
from ..text.messages import Message
from ..text.turns import leading_system
from .context import Mark
from .conversation import Conversation
from .past import Before, Filing, Said
from .spread_session import whole_memory

Memory = Mapping[int, tuple[mx.array | None, list[int]]]  # as in a `Mark`


def with_last_turns(talk: Conversation, now: MemoryFile, turns: int | None) -> MemoryFile:
    """The memory of a conversation as its file is to hold it.

    What the file that the conversation goes on from said of earlier turns is kept, and what was
    told since then is added: whoever reads that knows again what is sent or told again. A file that
    keeps turns keeps that as well.

    Args:
        talk (Conversation): A conversation.
        now (MemoryFile): Its memory, as it is now.
        turns (int): How many of the last turns can be taken back from the file; None: as before,
          none where the conversation goes on from no file that keeps them.
    """
    said = [*(before.said for before in talk.past), talk.said]
    file = said[0].filed
    if turns is None:
        kept = any(then.filed is not None and then.filed.history for then in said)
        turns = len(said) if kept else 0
    if not turns and all(then.filed is None or then.filed.told is None for then in said):
        return now
    marks = [*(before.mark for before in talk.past), talk.context.mark()]
    # In a pipeline all processes have to ask for the same points, whatever each knows of them.
    start = None if talk.spread.pipelined else _filed_last(talk.filing, said, marks, turns)
    points = list(
        zip(said[start or 0 :], whole_memory(marks[start or 0 :], talk.spread), strict=True)
    )
    if start is not None and talk.filing is not None:
        found = talk.filing.memory
    else:
        found = _at(points[0], now, talk.nothing_told if turns else None)
        found = file if file is not None and _same(found, file) else found
    for before, point in pairwise(points):
        file, after = point[0].filed, _at(point, now, found.told)
        if file is not None and file is not before[0].filed and _same(after, file):
            found = file  # a turn of the file, as it has it
        else:
            found = after.keeping(
                found,
                turns=turns,
                alone=not _told_by(before[0]),
                at=point[0].at or now.created,
                source=point[0].source,
            )
    if not talk.spread.pipelined:
        talk.filing = Filing(said[-1], _first(marks[-1]), turns, found)
    return replace(
        now, told=found.told, history=found.history[max(0, len(found.history) - turns) :]
    )


def _filed_last(last: Filing | None, said: list[Said], marks: list[Mark], turns: int) -> int | None:
    """Which of these points was filed last: only what came after it is to be packed."""
    for place in reversed(range(len(said))):
        if last is None or last.turns != turns:
            return None
        if said[place] is last.said and _first(marks[place]) is last.matrix:
            return place
    return None


def _first(mark: Mark) -> mx.array | None:
    return next(iter(mark.memory.values()))[0]


def go_on_from(talk: Conversation, memory: MemoryFile) -> None:
    """Make a new conversation with this memory know its last turns, so that they can be undone."""
    seen, here = talk.said.visible, memories(talk.context.cache)
    earlier = [memory]
    for _ in memory.history[-talk.past.turns :] if talk.past.turns else ():
        earlier.append(earlier[-1].before())
    for before in earlier[:0:-1]:
        states = {} if before.is_new else before.states
        held = {
            i: (mx.array(states[i]) if i in states else None, list(before.tokens_written))
            for i in before.states
            if i in here
        }
        said = Said(seen, seen, talk.said.pending, filed=before)
        if before.is_new:
            said = Said([], [], [*seen, *talk.said.pending], filed=before)
        talk.past.add(Before(Mark(object(), 0, held), said, [], answered=False, write=True))
    talk.said = talk.said._replace(filed=memory)
    if memory.told is not None:
        talk.nothing_told = Fingerprints(memory.told.salt)


def _at(point: tuple[Said, Memory], now: MemoryFile, before: Fingerprints | None) -> MemoryFile:
    """The memory at a point of a conversation; ``before`` is what it was told by the one before."""
    said, memory = point
    told = said.filed.told if said.filed is not None else before and Fingerprints(before.salt)
    if told is not None and (new := _told_by(said)):
        told = told.after(leading_system(said.messages), new, said.turns)
    shapes = {i: state.shape for i, state in now.states.items()}
    return replace(
        now,
        states={
            i: np.zeros(shapes[i], np.float32) if matrix is None else np.array(matrix)
            for i, (matrix, _) in memory.items()
        },
        tokens_written=list(next(iter(memory.values()))[1]),
        created=said.filed.created if said.filed is not None else "",
        told=told,
    )


def _told_by(said: Said) -> list[Message]:
    """What was said in the conversation itself, without the system messages that open it."""
    return said.messages[len(leading_system(said.messages)) :]


def _same(one: MemoryFile, other: MemoryFile) -> bool:
    return one.tokens_written == other.tokens_written and all(
        np.array_equal(state, other.states[i]) for i, state in one.states.items()
    )
