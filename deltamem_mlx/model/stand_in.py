"""What a process of a pipeline keeps whose layers have no memory.

The first memory elsewhere has a stand-in in its prompt caches, at their first entry. Nothing reads
it and its state means nothing, but it counts tokens, takes flags and refuses as that memory does:
so what is asked of a prompt cache is answered alike in all processes, and none waits for another.
"""

from collections.abc import MutableSequence, Sequence
from typing import Any

from .cache import MemoryCache
from .fingerprint import AdapterMark
from .layer import count
from .layer_cache import DeltaMemCache
from .spread import Spread


def put_stand_in(
    cache: MutableSequence[Any], mark: AdapterMark, memory: MemoryCache | None = None
) -> None:
    """Give a plain prompt cache a stand-in, where this process needs one.

    Args:
        cache (list): Changed in place.
        mark (AdapterMark): Of the model.
        memory (MemoryCache): What it is to go on from; None: an empty one.
    """
    for layer in () if mark.spread.mine else mark.spread.kept:
        cache[0] = DeltaMemCache(cache[0], memory or MemoryCache.of_adapter(layer, mark))


def without_stand_in(cache: Sequence[Any], spread: Spread) -> list[Any]:
    """What mlx-lm and the memories of this process have in a prompt cache."""
    return [*cache] if spread.mine or not spread.kept else [cache[0].kv, *cache[1:]]


def counted(cache: Sequence[Any], shape: Sequence[int], mark: AdapterMark) -> list[Any]:
    """The plain prompt cache for a call over tokens [B, T], which its stand-in has counted.

    Raises:
        TypeError: If it has no stand-in.
        ValueError: If it holds another number of conversations, or is of another adapter.
    """
    if not isinstance(cache[0], DeltaMemCache):
        raise TypeError(
            f"The model keeps a memory, but its cache is a {type(cache[0]).__name__}. Make the "
            "prompt cache with make_prompt_cache(model) after the adapter is loaded."
        )
    memory = cache[0].memory
    if memory.mark is not mark:
        memory.belong_to(mark)
    count(memory, shape[0], shape[1])
    return without_stand_in(cache, mark.spread)
