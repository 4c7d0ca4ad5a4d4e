"""Sessions of models that lie in several processes, beside the same in one."""

import json
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.tokenizer_utils import load
from safetensors.numpy import load_file
from spread_models import adapted, apart, built, config_for, spread
from tiny import TOKENIZER

import deltamem_mlx as dm
from deltamem_mlx import MemorySession
from deltamem_mlx.memory.file import read_memory


def turns(session: MemorySession) -> list[str]:
    """Some of all that can be done."""
    said = [session.ask("Hi, I am Ann.", max_tokens=6), session.ask("Who?", max_tokens=6)]
    session.remember("A cat.")
    session.undo()
    said.append(session.edit(1, "And you?", max_tokens=5))
    session.forget_context()
    return [*said, session.ask("Again?", max_tokens=6), session.ask("More?", max_tokens=4)]


def opened(model: nn.Module) -> MemorySession:
    return MemorySession(model, load(TOKENIZER), system_prompt="Be kind.", undo_bytes=5000)


def of_folder(folder: Path) -> tuple[dict, dict]:
    """What a saved session says, what is in no two the same left out; and its arrays."""
    values = json.loads((folder / "session.json").read_text())
    arrays = load_file(folder / values["context"]["file"])
    states = load_file(folder / values["past"]["file"])
    for name in ("created", "checksum", "context"):
        del values[name]
    del values["past"]["file"], values["past"]["sha256"]
    return values, arrays | {f"past {name}": x for name, x in states.items()}


def compared(name: str, kind: str, folder: Path, group: mx.distributed.Group) -> dict:
    alone = folder / f"{name}-{group.rank()}"
    whole = adapted(built(name), alone / "adapter", config_for(name))
    part = dm.load_adapter(spread(built(name), kind, group), alone / "adapter")
    sessions = one, several = opened(whole), opened(part)
    said = [turns(session) for session in sessions]
    one.save(alone / "session")
    several.save(folder / name)
    (values, arrays), (others, parts) = (of_folder(f) for f in (alone / "session", folder / name))
    at_first = several.stats()
    again = MemorySession.restore(folder / name, part, load(TOKENIZER))
    other = MemorySession.restore(alone / "session", part, load(TOKENIZER))
    went_on = [s.ask("And now?", max_tokens=8) for s in (one, several, again, other)]
    back = [len(s.undo(2)) for s in (one, several, again, other)]
    went_back = [s.ask("And then?", max_tokens=8) for s in (one, several, again, other)]
    states = [dm.memory_state(s.cache) for s in (one, several, again, other)]
    one.save(alone / "memory.safetensors", history=3)
    several.save(folder / f"{name}.safetensors", history=3)
    files = [read_memory(f) for f in (alone / "memory.safetensors", folder / f"{name}.safetensors")]
    from_file = MemorySession.restore(folder / f"{name}.safetensors", part, load(TOKENIZER))
    from_file.undo(2)
    earlier = {i: mx.array(x) for i, x in files[1].before().before().states.items()}
    try:
        MemorySession.restore(folder / "nothing.safetensors", part, load(TOKENIZER))
    except FileNotFoundError as error:
        refused = str(error)
    return {
        "said": [*zip(*said, strict=True), went_on, back, went_back],
        "same_text": values == others,
        "same_arrays": arrays.keys() == parts.keys()
        and all(np.array_equal(arrays[key], parts[key]) for key in arrays),
        "shapes": [
            {k: list(x.shape) for k, x in found.items() if not k.startswith("past")}
            for found in (arrays, parts)
        ],
        "states": max(apart(states[0], state) for state in states[1:]),
        "restored": apart(states[1], states[2]),
        "history": [[turn.packed.tolist() for turn in file.history] for file in files],
        "undone": apart(earlier, dm.memory_state(from_file.cache)),
        "stats": at_first["memory_bytes"],
        "kept": [s.stats()["undo_turns"] for s in sessions],
        "refused": refused,
    }
