"""What is done to prompt caches of a model in a pipeline, beside the same in one process."""

import copy
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import (
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.tokenizer_utils import load
from spread_models import TOKENS, adapted, built, config_for, fed, spread
from tiny import TOKENIZER

import deltamem_mlx as dm
from deltamem_mlx.inspection.turn import watched
from deltamem_mlx.memory.actions import memories, rewindable, write_spans
from deltamem_mlx.model.patch import spread_of_memory

Found = list[object]
ADMITTED = "not refused"


def memory(cache: list) -> Found:
    """The states of all layers, to the bit, and what is counted here."""
    states = {i: np.array(x) for i, x in dm.memory_state(cache).items()}
    prints = [[i, hashlib.sha256(x.tobytes()).hexdigest()] for i, x in states.items()]
    return [*prints, next(iter(memories(cache).values())).written]


def refused(act: Callable[[], object]) -> str:
    try:
        act()
    except ValueError as error:
        return str(error)
    return ADMITTED


def batched(model: nn.Module, folder: Path) -> Found:
    """Two conversations of unequal length, of which one only reads; then each for itself."""
    singles = [make_prompt_cache(model) for _ in range(2)]
    with dm.read_only(singles[1]):
        batch = [pair[0].merge(list(pair)) for pair in zip(*singles, strict=True)]
        for entry in batch:
            entry.prepare(lengths=[12, 9], right_padding=[0, 3])
        fed(model, batch, mx.concatenate([TOKENS, TOKENS]))
        for entry in batch:
            entry.finalize()
        fed(model, batch, mx.array([[5], [6]]))
    found = memory(batch)
    for row in range(2):
        found += memory([entry.extract(row) for entry in batch])
    return [*found, refused(lambda: fed(model, batch, TOKENS)) != ADMITTED]


def taken_back(model: nn.Module, folder: Path) -> Found:
    cache = make_prompt_cache(model)
    fed(model, cache, TOKENS)
    with rewindable(cache, 3):
        fed(model, cache, TOKENS[:, :5])
        trim_prompt_cache(cache, 2)
        found = memory(cache)
        found.append(refused(lambda: trim_prompt_cache(cache, 2)))
    return [*found, refused(lambda: trim_prompt_cache(cache, 1))]


def by_spans(model: nn.Module, folder: Path) -> Found:
    """Writes of whole messages, fed in two calls; and an ingest that ends too soon."""
    cache, ids = make_prompt_cache(model), [[0] * 5 + [1] * 6 + [-1]]
    with write_spans(cache, ids):
        fed(model, cache, TOKENS[:, :7])
        found = memory(cache)
        fed(model, cache, TOKENS[:, 7:])
    fed(model, cache, TOKENS[:, :2])

    def too_soon() -> None:
        with write_spans(cache, ids):
            fed(model, cache, TOKENS[:, :7])

    return [*found, *memory(cache), refused(too_soon), *memory(cache)]


def emptied(model: nn.Module, folder: Path) -> Found:
    """Forgotten, copied, set, and read back from mlx-lm's own file."""
    cache = make_prompt_cache(model)
    fed(model, cache, TOKENS)
    held = dm.memory_state(cache)
    dm.forget_context(cache)
    other = copy.deepcopy(cache)
    dm.reset_memory(cache)
    found = [*memory(cache), *memory(other)]
    found.append(refused(lambda: dm.set_memory_state(cache, {0: held[next(iter(held))]})))
    dm.set_memory_state(cache, held)
    fed(model, cache, TOKENS)
    mx.eval([entry.state for entry in cache])
    folder.mkdir(parents=True, exist_ok=True)
    file = str(folder / f"{spread_of_memory(model).ranks.rank}.safetensors")
    save_prompt_cache(file, cache)
    again = load_prompt_cache(file)
    fed(model, again, TOKENS)
    return [*found, *memory(cache), *memory(again)]


def quantized(model: nn.Module, folder: Path) -> Found:
    cache = make_prompt_cache(model)
    steps = generate_step(
        TOKENS[0], model, prompt_cache=cache, max_tokens=6, kv_bits=8, kv_group_size=32
    )
    return [*(int(token) for token, _ in steps), *memory(cache)]


def talked(model: nn.Module, folder: Path) -> Found:
    """What a session says of itself, of its numbers and of what it wrote most strongly."""
    session = dm.MemorySession(model, load(TOKENIZER))
    with watched(session) as watch:
        said = session.ask("Hi, I am Ann from Rome.", max_tokens=6)
    found = [said, watch.written, watch.strongest(3), session.stats()]
    with session.read_only():
        found.append(session.ask("Who?", max_tokens=4))
    fork = session.fork()
    fork.ask("And Bob?", max_tokens=4)
    session.reset()
    return [*found, session.stats(), fork.stats(), len(fork.undo()), fork.stats()]


ACTIONS = batched, taken_back, emptied, quantized, talked


def compared(name: str, kind: str, folder: Path, group: mx.distributed.Group) -> dict:
    """For each action, whether it comes to the same."""
    alone, found = folder / f"{name}-{group.rank()}", {}
    for granularity, actions in {"token": ACTIONS, "message_mean": (by_spans,)}.items():
        config = replace(config_for(name), memory_write_granularity=granularity)
        whole = adapted(built(name), alone / granularity, config)
        part = dm.load_adapter(spread(built(name), kind, group), alone / granularity)
        for act in actions:
            one, several = act(whole, alone), act(part, folder / "parts")
            found[act.__name__] = one == several or [str(one), str(several)]
    return found
