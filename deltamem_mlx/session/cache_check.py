"""Whether a prompt cache that was read from a file is one of this model and conversation."""

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..model.cache import MemoryCache
from ..model.layer_cache import DeltaMemCache


def holds(kv: Any, length: int) -> bool:
    """Whether a KV cache holds as many tokens as were fed. Other caches do not tell."""
    if not hasattr(kv, "keys"):
        return True
    if kv.keys is None and kv.values is None:
        return bool(kv.offset == length == 0)
    keys, values = (list(dict(tree_flatten(x)).values()) for x in (kv.keys, kv.values))
    if not keys or len(keys) != len(values):
        return False
    room = min(x.shape[2] for x in (*keys, *values))
    return bool(kv.offset == length and min(length, getattr(kv, "max_size", length)) <= room)


def kind(cache: Any) -> object:
    """What two caches of one layer have in common, whatever they hold."""
    if isinstance(cache, DeltaMemCache):
        return kind(cache.caches[0]), *map(_kind_of_memory, cache.memories)
    if hasattr(cache, "caches"):
        return [kind(c) for c in cache.caches]
    # A KV cache may have been quantized on the way.
    return type(cache).__name__.removeprefix("Quantized")


def _kind_of_memory(memory: MemoryCache) -> tuple[int, int, int, str]:
    matrix = memory.matrix
    expected = (1, memory.heads, memory.rank, memory.rank)
    if matrix is not None and (matrix.shape != expected or matrix.dtype != mx.float32):
        raise ValueError(f"layer {memory.layer}: a state of shape {list(matrix.shape)}")
    if len(memory.written) != 1 or not 0 <= memory.written[0] < 2**31:
        raise ValueError(f"layer {memory.layer}: counts of tokens {memory.written}")
    return memory.layer, memory.heads, memory.rank, memory.granularity
