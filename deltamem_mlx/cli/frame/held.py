"""What a memory holds of the words of a text, for commands that show it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame.progress import answering

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.inspection.holding import HeldWord
    from deltamem_mlx.inspection.memory_contents import MemoryContents
    from deltamem_mlx.text.messages import Message

Pair = Callable[[], tuple["nn.Module", "TokenizerWrapper"]]


def states_of(memory: "MemoryContents", model: "nn.Module") -> dict[int, "mx.array"]:
    """The states of one conversation, if they were written under the model's adapter."""
    from mlx_lm.models.cache import make_prompt_cache

    from deltamem_mlx.memory.actions import memory_state
    from deltamem_mlx.memory.saving import restore_memory

    cache = make_prompt_cache(model)
    restore_memory(memory.name, memory.file, cache, model)
    at = memory.conversation
    return {layer: state[at : at + 1] for layer, state in memory_state(cache).items()}


def words_held(
    memory: "MemoryContents",
    messages: Sequence["Message"],
    loaded: tuple["nn.Module", "TokenizerWrapper"],
    settings: dict[str, Any] | None = None,
) -> list["HeldWord"]:
    """What the memory holds of the strongest words of messages, with a bar."""
    from deltamem_mlx.inspection.holding import held_words

    model, tokenizer = loaded
    state = states_of(memory, model)
    with answering(len(messages)) as tell:
        return held_words(
            model,
            tokenizer,
            state,
            messages,
            template_kwargs=settings,
            progress=lambda *_: tell(1),
        )


def words_of_its_own(path: Path, memory: "MemoryContents", pair: Pair) -> list["HeldWord"]:
    """The same of what the memory was told, where that is kept: in the folder of a session.

    Nothing, where the model that was asked for is another.
    """
    from deltamem_mlx.adapters.loading import has_fingerprint
    from deltamem_mlx.inspection.memory_contents import is_session
    from deltamem_mlx.session.file import read_session

    messages = read_session(path)["messages"] if is_session(path) else []
    if not messages:
        return []
    loaded = pair()
    here = has_fingerprint(loaded[0], memory.file.adapter)
    return words_held(memory, messages, loaded) if here else []
