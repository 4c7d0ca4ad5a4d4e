"""Numbers about a conversation and its memory."""

from typing import TypedDict

from ..memory.actions import memories, memory_state
from ..memory.measures import layer_measures
from .conversation import Conversation


class LayerNumbers(TypedDict):
    """Of one layer's states: Frobenius norm, and how many directions they use."""

    norm: float
    effective_rank: float


class Stats(TypedDict):
    """Numbers about a conversation: see ``MemorySession.stats``."""

    turns: int
    undo_turns: int
    messages: int
    context_tokens: int
    tokens_written: int
    memory_bytes: int
    layers: dict[int, LayerNumbers]


def stats_of(talk: Conversation) -> Stats:
    """Numbers about a conversation as it is now."""
    said, context = talk.said, talk.context
    first = next(iter(memories(context.cache).values()))
    states = memory_state(context.cache)
    return {
        "turns": said.turns,
        "undo_turns": len(talk.past),
        "messages": len(said.messages) + len(said.pending),
        "context_tokens": len(context.tokens),
        "tokens_written": first.written[0],
        "memory_bytes": 0 if first.matrix is None else sum(s.nbytes for s in states.values()),
        "layers": {
            layer.layer: {"norm": layer.norm, "effective_rank": layer.effective_rank}
            for layer in layer_measures(states)
        },
    }
