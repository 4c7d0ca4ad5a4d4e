"""The memory in a prompt cache, written to a memory file and read from one."""

from datetime import UTC, datetime
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..adapters.loading import base_model_of, fingerprint, has_fingerprint
from ..model.arguments import expect
from ..model.names import public_name
from ..model.patch import attachment, spread_of_memory
from .actions import PromptCache, memories, memory_state, set_memory_state
from .contents import MemoryFile
from .file import read_memory, write_memory


def save_memory(path: str | Path, cache: PromptCache, model: nn.Module, *, note: str = "") -> None:
    """Write the memory in a prompt cache to one safetensors file, atomically.

    The file holds the float32 states, the adapter's fingerprint, the model's name and shape, the
    number of tokens written and when; nothing of the text. Of a model that is spread over several
    processes all of them call it, and the first alone writes the file, which any number can load.

    Args:
        path (Path): The file; one that is there is replaced.
        cache (list): A prompt cache of ``model``.
        model (nn.Module): A model with an adapter.
        note (str): Free text to keep with it.

    Raises:
        ValueError: If the cache holds no memory, or holds NaN.
        OSError: If the file cannot be written; what was there is unchanged then.
    """
    expect("dm.save_memory(path, cache, model)", path=path, cache=cache, model=model)
    memory = memory_of(cache, model, note=note)
    spread_of_memory(model).ranks.by_first(lambda: write_memory(path, memory))


def memory_of(cache: PromptCache, model: nn.Module, *, note: str = "") -> MemoryFile:
    """The memory in a prompt cache as its file would hold it."""
    first = next(iter(memories(cache).values()))
    states = {i: np.array(state) for i, state in memory_state(cache).items()}
    return MemoryFile(
        states=states,
        adapter=fingerprint(model),
        base_model=described(model),
        tokens_written=list(first.written),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        note=note,
    )


def load_memory(path: str | Path, model: nn.Module) -> PromptCache:
    """A fresh prompt cache of ``model`` with the memory in ``path``.

    Of a model that is spread over several processes all of them call it, and the first alone reads.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or was written under another adapter or shape.
    """
    expect("dm.load_memory(path, model)", path=path, model=model)
    memory = spread_of_memory(model).ranks.by_first(lambda: read_memory(path))
    cache = make_prompt_cache(model)
    restore_memory(path, memory, cache, model)
    return cache


def restore_memory(
    path: str | Path, memory: MemoryFile, cache: PromptCache, model: nn.Module
) -> None:
    """Put the memory read from ``path`` into a prompt cache of ``model``.

    Raises:
        ValueError: If it was written under another adapter or shape.
    """
    if not has_fingerprint(model, memory.adapter):
        loaded = fingerprint(model)
        name = memory.base_model.get("name") or "an unnamed model"
        raise ValueError(
            f"{path} was written under another adapter (fingerprint {memory.adapter[:12]}, for "
            f"{name}; this one is {loaded[:12]}). Load the adapter it was saved with."
        )
    try:
        put_memory(cache, memory)
    except ValueError as error:
        raise ValueError(f"{path} does not fit this model. {error}") from error


def put_memory(cache: PromptCache, memory: MemoryFile) -> None:
    """Put a memory into a prompt cache. One that is new leaves the cache as fresh as it is.

    Raises:
        ValueError: If the shapes do not fit.
    """
    set_memory_state(cache, {i: mx.array(state) for i, state in memory.states.items()})
    for layer in memories(cache).values():
        layer.written = list(memory.tokens_written)
        if memory.is_new:
            layer.matrix = None


def described(model: nn.Module) -> dict[str, object]:
    """What a memory file says of the model: a local one by name, its path would tell too much."""
    return base_model_of(model) | {"name": public_name(attachment(model).base_model)}
