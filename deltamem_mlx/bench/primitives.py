"""What a model computes in one call, counted in MLX primitives."""

import io
import re
from collections import Counter

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from ..model.early import whole_graphs
from ..model.parameters import flat_arrays
from ..model.patch import memory_layers

_NODE = re.compile(r'\[label ="([^"]*)", shape=rectangle\]')

# Those that only look at the same numbers in another way: no kernel runs for them. Reshape is not
# among them, as it copies what does not lie in a row.
VIEWS = (
    *("AsStrided", "Broadcast", "BroadcastAxes", "ExpandDims", "Flatten", "Slice", "Split"),
    *("Squeeze", "StopGradient", "Transpose", "Unflatten"),
)


def count_primitives(model: nn.Module, cache: list, tokens: int = 1) -> Counter[str]:
    """How often each primitive occurs in the graph of one call of so many tokens.

    The graph is that of the logits and of everything the cache then holds. Compiled functions
    count as one primitive per fused kernel.

    Args:
        model (nn.Module): With or without a memory.
        cache (list): A prompt cache that has been fed. It advances by two calls: the first
          leaves nothing pending, such as the packing of weights, that is done only once.
        tokens (int): Of the call, for each conversation.
    """
    batch_size = cached_arrays(cache)[0].shape[0]
    call = mx.zeros((batch_size, tokens), mx.int32)
    mx.eval(call, model(call, cache=cache), cached_arrays(cache))
    with whole_graphs():
        return primitives_of(model(call, cache=cache), *cached_arrays(cache))


def primitives_of(*arrays: mx.array) -> Counter[str]:
    """How often each primitive occurs in the graph of what has not been evaluated yet."""
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return Counter(_NODE.findall(graph.getvalue()))


def added_per_layer(
    plain: nn.Module, patched: nn.Module, batch_size: int = 1, tokens: int = 1
) -> dict[str, float]:
    """What a memory adds to each patched layer in a call of so many tokens.

    Returns:
        dict[str, float]: ``primitives``, all of them, and ``kernels``, those that may launch a
          kernel on a GPU.
    """
    counts = []
    for model in (plain, patched):
        cache = make_prompt_cache(model)
        model(mx.zeros((batch_size, 3), mx.int32), cache=cache)
        counts.append(count_primitives(model, cache, tokens))
    layers = len(memory_layers(patched))
    primitives = counts[1].total() - counts[0].total()
    views = sum(counts[1][name] - counts[0][name] for name in VIEWS)
    return {"primitives": primitives / layers, "kernels": (primitives - views) / layers}


def cached_arrays(cache: list) -> list[mx.array]:
    """All arrays in a prompt cache."""
    return [array for _, array in flat_arrays([entry.state for entry in cache])]
