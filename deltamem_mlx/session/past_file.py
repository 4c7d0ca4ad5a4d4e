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
from ..problems import FLAG, list_of, misfits, optional, whole_number
from ..text.messages import Message
from .context import Mark
from .past import Before, Said

_COUNT = whole_number()
_PLACES = list_of(_COUNT, 1 << 24)
_SCHEMA = {
    "messages": _COUNT,
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
) -> list[dict[str, object]]:
    """What is said of each turn, with messages by their place in ``said``.

    ``context`` is the one that is saved with them: marks in it can be gone back to.
    """
    places = {id(message): i for i, message in enumerate(said)}

    def found(messages: Sequence[Message]) -> list[int]:
        return [places[id(m)] if id(m) in places else list(said).index(m) for m in messages]

    return [
        {
            "messages": len(before.said.messages),
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
        before = Said(list(said[: turn["messages"]]), visible, pending, int(turn["turns"]))
        turns.append(Before(mark, before, new, bool(turn["answered"]), bool(turn["write"])))
    return turns


def turn_problems(values: object, said: Sequence[Message]) -> list[str]:
    """What is wrong with turns as they stand in JSON."""
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
            named = [turn["messages"] - 1, *turn["visible"], *turn["pending"], *turn["new"]]
            if max(named) >= len(said):
                problems.append(f"past[{number}]: a message beyond the {len(said)} that were said")
    return problems
