"""What a memory file holds, and how far apart two memories are, without loading a model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mlx_lm.models.cache import load_prompt_cache

from ..memory.actions import memories, memory_state
from ..memory.file import MemoryFile, read_memory
from ..memory.measures import LayerDistance, LayerMeasures, distances, layer_measures
from ..session.file import SESSION, read_session, verified


@dataclass(frozen=True)
class MemoryContents:
    """What a memory file holds.

    Args:
        name (str): As it was asked for.
        file (MemoryFile): The file.
        conversation (int): The conversation whose states these are.
        states (dict[int, np.ndarray]): Layer index → [1, H, r, r].
        layers (list[LayerMeasures]): Their measures.
    """

    name: str
    file: MemoryFile
    conversation: int
    states: dict[int, np.ndarray]
    layers: list[LayerMeasures]

    @property
    def tokens_written(self) -> int:
        return self.file.tokens_written[self.conversation]


@dataclass(frozen=True)
class Comparison:
    """Two memories and how far apart they are.

    Args:
        a, b (MemoryContents): The memories.
        layers (list[LayerDistance]): In order.
    """

    a: MemoryContents
    b: MemoryContents
    layers: list[LayerDistance]

    @property
    def same_adapter(self) -> bool:
        return self.a.file.adapter == self.b.file.adapter


def inspect_memory(path: str | Path, conversation: int = 0) -> MemoryContents:
    """What a memory file, or the memory in the folder of a saved session, holds.

    Args:
        path (Path): The file or folder.
        conversation (int): Which of its conversations.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, or has no such conversation.
    """
    file = _saved_memory(Path(path)) if is_session(path) else read_memory(path)
    count = len(file.tokens_written)
    if not 0 <= conversation < count:
        raise ValueError(
            f"{path} holds {count} conversation{'s' * (count != 1)}; conversation {conversation} "
            f"is not there. Expected 0 to {count - 1}."
        )
    states = {i: state[conversation : conversation + 1] for i, state in sorted(file.states.items())}
    return MemoryContents(str(path), file, conversation, states, layer_measures(states))


def is_session(path: str | Path) -> bool:
    """Whether ``path`` is the folder of a saved session."""
    return (Path(path) / SESSION).is_file()


def _saved_memory(folder: Path) -> MemoryFile:
    """The memory in the folder of a saved session, as its file would hold it."""
    values = read_session(folder)
    path = verified(folder, values["context"])
    try:
        cache = load_prompt_cache(str(path))
        states = {i: np.array(state) for i, state in memory_state(cache).items()}
        written = list(next(iter(memories(cache).values())).written)
    except Exception as error:  # whatever a damaged file makes its reader raise
        raise ValueError(f"{path} cannot be read as a prompt cache: {error!r:.300}") from error
    adapter, model, created = (values[name] for name in ("adapter", "base_model", "created"))
    return MemoryFile(states, adapter, model, written, created, values.get("note", ""))


def compare(a: MemoryContents, b: MemoryContents) -> Comparison:
    """How far apart two memories are.

    Raises:
        ValueError: If their layers or shapes differ.
    """
    return Comparison(a, b, distances(a.states, b.states))
