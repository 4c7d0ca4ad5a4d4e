"""The turns of a conversation that can be taken back, and what goes with each."""

from typing import TypedDict

from ..memory.actions import memories
from ..text.messages import Message
from .conversation import Conversation


class UndoableTurn(TypedDict):
    """A turn that can be taken back: see ``MemorySession.undoable``."""

    new: list[Message]
    answered: bool
    tokens_written: int
    earlier: bool


def undoable_turns(talk: Conversation) -> list[UndoableTurn]:
    """The turns that can be taken back, the last one first."""
    found: list[UndoableTurn] = []
    after = next(iter(memories(talk.context.cache).values())).written[0]
    for before in reversed(list(talk.past)):
        written = next(iter(before.mark.memory.values()))[1]
        then = written[0] if written else 0
        found.append(
            {
                "new": list(before.new),
                "answered": before.answered,
                "tokens_written": after - then,
                "earlier": before.is_filed,
            }
        )
        after = then
    return found
