"""What a session says of itself, where Python or a notebook shows it."""

from html import escape

import numpy as np

from ..memory.actions import memories, memory_state
from ..memory.picture import states_html
from .conversation import Conversation


def described(talk: Conversation) -> str:
    """``3 turns, 45 tokens written, 6.1 KB, context 32 tokens``; no text of the conversation."""
    found = list(memories(talk.context.cache).values())
    size = sum(memory.nbytes for memory in found)
    turns, written = talk.said.turns, found[0].written[0]
    return (
        f"{turns} turn{'s' * (turns != 1)}, {written:,} token{'s' * (written != 1)} written, "
        f"{size / 1000:.1f} KB, context {len(talk.context.tokens):,} tokens"
    )


def html(name: str, talk: Conversation) -> str:
    """The same, and a picture of the states."""
    states = {i: np.array(state) for i, state in memory_state(talk.context.cache).items()}
    return f"<div><b>{escape(name)}</b>: {described(talk)}</div><div>{states_html(states)}</div>"
