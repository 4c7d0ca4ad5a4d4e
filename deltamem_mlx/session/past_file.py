"""The turns that a saved session can go back over: their states in one file, the rest as JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..files import write_atomically
from ..memory.packing import pack_states, unpack_states
from ..problems import FLAG, Field, list_of, misfits, optional, whole_number
from ..text.messages import Message, message_problems
from .context import Mark
from .past import Before, Said

_COUNT = whole_number()
_PLACES = list_of(_COUNT, 1 << 24)
_SCHEMA = {
    "messages": Field(
        lambda v: _COUNT.fits(v) or _PLACES.fits(v), "how many of the first messages, or which"
    ),
    "visible": _PLACES,
    "pending": _PLACES,
    "turns": _COUNT,
    "new": _PLACES,
    "answered": FLAG,
    "write": FLAG,
    "here": FLAG,
    "length": _COUNT,
    "written": optional(list_of(_COUNT, 1)),
}


def turns_as_json(
    past: Sequence[Before], said: Sequence[Message], context: object
) -> tuple[list[dict[str, object]], list[Message]]:
    """What is said of each turn, with messages by their place, and those that are said no more.

    The places count ``said``, then what a reset or a rewrite has dropped of it. ``context`` is the
    one that is saved with them: marks in it can be gone back to.
    """
    places = {id(message): i for i, message in enumerate(said)}
    dropped: list[Message] = []

    def found(messages: Sequence[Message]) -> list[int]:
        for message in messages:
            if id(message) not in places:
                places[id(message)] = len(said) + len(dropped)
                dropped.append(message)
        return [places[id(message)] for message in messages]

    def fed(messages: Sequence[Message]) -> int | list[int]:
        which = found(messages)
        return len(which) if which == list(range(len(which))) else which

    turns: list[dict[str, object]] = [
        {
            "messages": fed(before.said.messages),
            "visible": found(before.said.visible),
            "pending": found(before.said.pending),
            "turns": before.said.turns,
            "new": found(before.new),
            "answered": before.answered,
            "write": before.write,
            "here": before.mark.context is context,
            "length": before.mark.length,
            "written": _written(before.mark),
        }
        for before in past
    ]
    return turns, dropped


def _written(mark: Mark) -> list[int] | None:
    """Tokens written; None: the memory was new."""
    matrix, written = next(iter(mark.memory.values()))
    return None if matrix is None else list(written)


def save_states(path: Path, past: Sequence[Before]) -> None:
    """Write the states of the turns, layer by layer."""
    held = [before.mark.memory for before in past if _written(before.mark) is not None]
    layers = held[0] if held else {}
    tensors = {f"{i}": pack_states([np.array(memory[i][0]) for memory in held]) for i in layers}
    write_atomically(path, lambda p: save_file(tensors, p), 0o600)


def turns_of(
    values: Sequence[Mapping[str, Any]],
    path: Path,
    said: Sequence[Message],
    context: object,
    shapes: Mapping[int, tuple[int, ...]],
) -> list[Before]:
    """The turns, with their states read from ``path``.

    Raises:
        ValueError: If they do not fit what was said, or the model's memory.
    """
    count = sum(turn["written"] is not None for turn in values)
    try:
        tensors = load_file(path)
        states = {
            i: unpack_states(tensors[f"{i}"], count, shape) if count else []
            for i, shape in shapes.items()
        }
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path} holds no states of these turns: {error}") from error
    turns, held = [], 0
    for turn in values:
        memory: dict[int, tuple[mx.array | None, list[int]]] = {i: (None, [0]) for i in shapes}
        if turn["written"] is not None:
            memory = {i: (mx.array(states[i][held]), list(turn["written"])) for i in shapes}
            held += 1
        mark = Mark(context if turn["here"] else object(), int(turn["length"]), memory)
        visible, pending, new = (
            [said[i] for i in turn[name]] for name in ("visible", "pending", "new")
        )
        first = turn["messages"]
        fed = said[:first] if isinstance(first, int) else [said[i] for i in first]
        before = Said(list(fed), visible, pending, int(turn["turns"]))
        turns.append(Before(mark, before, new, bool(turn["answered"]), bool(turn["write"])))
    return turns


def ever_said(session: Mapping[str, Any]) -> list[Message]:
    """What places of messages in the turns count: what is said, then what was dropped of it."""
    dropped = session["past"].get("dropped", [])
    return [*session["messages"], *session["pending"], *dropped]


def turn_problems(session: Mapping[str, Any]) -> list[str]:
    """What is wrong with the turns in a session's JSON, whose messages are known to be some."""
    values, dropped = session["past"].get("turns"), session["past"].get("dropped", [])
    if dropped != [] and (bad := message_problems(dropped)):
        return [f"past.dropped{bad[0].field.removeprefix('messages')}: {bad[0].what}"]
    said = ever_said(session)
    if not isinstance(values, list) or len(values) > 1 << 16:
        return ["past: not a list of turns"]
    problems: list[str] = []
    for number, turn in enumerate(values):
        if not isinstance(turn, dict):
            problems.append(f"past[{number}]: not an object")
            continue
        wrong = [f"past[{number}].{line}" for line in misfits(turn, _SCHEMA)]
        problems += wrong
        if not wrong:
            first = turn["messages"]
            named = [first - 1] if isinstance(first, int) else [-1, *first]
            named += [*turn["visible"], *turn["pending"], *turn["new"]]
            if max(named) >= len(said):
                problems.append(f"past[{number}]: a message beyond the {len(said)} that were said")
    return problems
