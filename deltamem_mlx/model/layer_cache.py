"""The entry of a prompt cache for a patched layer: its keys and values, and its memory.

All that mlx-lm does to a prompt cache (batching, filtering, saving, copying, quantizing) is done
to both. What a user calls on a prompt cache is in ``memory/actions.py``.
"""

from collections.abc import Callable, Sequence
from functools import partial

import mlx.core as mx
from mlx_lm.models.cache import CacheList

from ..compat import BaseCache, make_savable
from .cache import MemoryCache
from .layer import Memory


@make_savable
class NoKeys(BaseCache):
    """Stands where a KV cache would, in layers that look at the keys of other layers only."""

    def trim(self, n: int) -> int:
        return n

    def is_trimmable(self) -> bool:
        return True

    def empty(self) -> bool:
        return True

    @property
    def nbytes(self) -> int:
        return 0

    @classmethod
    def merge(cls, caches: Sequence["NoKeys"]) -> "NoKeys":
        return cls()

    def extract(self, idx: int) -> "NoKeys":
        return NoKeys()

    def filter(self, batch_indices: object) -> None:
        pass

    def extend(self, other: "NoKeys") -> None:
        pass

    def prepare(self, **_: object) -> None:
        pass

    def finalize(self) -> None:
        pass


class LayerCache(CacheList):
    """What a patched attention finds in a prompt cache.

    Stands in for the KV cache where a model asks it for an offset or a mask.
    """

    def __getattr__(self, name: str) -> object:
        if name.startswith("__") or name == "caches":
            raise AttributeError(name)
        return getattr(self.caches[0], name)

    def __setattr__(self, name: str, value: object) -> None:
        # A pipeline hangs what it sends on the keys, which are computed in every step of a prompt.
        kv = vars(self).get("caches", (None,))[0]
        ours = name in vars(self) or hasattr(type(self), name) or not hasattr(kv, name)
        if ours:
            super().__setattr__(name, value)
        else:
            setattr(kv, name, value)

    def __getitem__(self, idx: int) -> object:
        # Some models look into a layer's cache where that is itself a list.
        return self.caches[0][idx]

    @property
    def kv(self) -> BaseCache | None:
        """The layer's cache as mlx-lm makes it; None where the layer has none of its own."""
        kv: BaseCache = self.caches[0]
        return None if type(kv) is NoKeys else kv

    def memory_of(self, layer: int) -> Memory:
        """The memory of one of the attentions that use this cache."""
        raise NotImplementedError


@make_savable
class DeltaMemCache(LayerCache):
    """A layer's KV cache and its memory.

    It can be trimmed while its memory keeps the way back: see ``dm.rewindable``.

    Args:
        kv (BaseCache): The layer's cache as mlx-lm makes it, of any kind. ``None``: the layer has
          none of its own.
        *memories (MemoryCache): The layer's memory. Where several layers share the KV cache, the
          memory of each of them.
    """

    def __init__(self, kv: BaseCache | None, *memories: MemoryCache):
        self.caches = (NoKeys() if kv is None else kv, *memories)

    def __repr__(self) -> str:
        kv = "no keys" if self.kv is None else type(self.kv).__name__
        tokens = getattr(self.kv, "offset", None)
        held = f" of {tokens:,} tokens" if isinstance(tokens, int) else ""
        return f"DeltaMemCache({kv}{held}, {', '.join(map(repr, self.memories))})"

    @property
    def memory(self) -> MemoryCache:
        """The layer's memory; of several layers that of the first."""
        return self.memories[0]

    @property
    def memories(self) -> tuple[MemoryCache, ...]:
        """The memories of the layers that use this cache."""
        return tuple(self.caches[1:])

    def memory_of(self, layer: int) -> MemoryCache:
        memory: MemoryCache
        for memory in self.caches[1:]:
            if memory.layer == layer:
                return memory
        raise ValueError(
            f"The prompt cache has no memory for layer {layer}: it was made for another adapter. "
            "Make it with make_prompt_cache(model)."
        )

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Refuse what an attention without a memory asks of a KV cache.

        Raises:
            ValueError: Always; an attention with a memory is given the KV cache alone.
        """
        raise ValueError(
            "The prompt cache has a memory, and the model that uses it has none. Load its adapter "
            "(dm.load_adapter), or make a new prompt cache with make_prompt_cache(model)."
        )

    def is_trimmable(self) -> bool:
        return all(m.trail is not None for m in self.memories) and self.caches[0].is_trimmable()

    def trim(self, n: int) -> int:
        for memory in self.memories:
            n = memory.trim(n)  # the first raises before anything has changed
        trimmed: int = self.caches[0].trim(n)
        return trimmed

    # mlx-lm asks with hasattr what a cache can do, so offer only what the KV cache can.

    @property
    def to_quantized(self) -> Callable[..., "DeltaMemCache"]:
        quantize = self.caches[0].to_quantized
        return lambda **kwargs: type(self)(quantize(**kwargs), *self.memories)

    @property
    def merge(self) -> Callable[[Sequence["DeltaMemCache"]], "DeltaMemCache"]:  # type: ignore[override]  # for hasattr
        return partial(self._merge, self.caches[0].merge)

    @classmethod
    def _merge(
        cls, merge_kv: Callable[..., BaseCache], caches: Sequence["DeltaMemCache"]
    ) -> "DeltaMemCache":
        rows = zip(*(c.memories for c in caches), strict=True)
        return cls(merge_kv([c.caches[0] for c in caches]), *map(MemoryCache.merge, rows))

    def extract(self, idx: int) -> "DeltaMemCache":
        return type(self)(*(c.extract(idx) for c in self.caches))

    def size(self) -> int:
        size: int = self.caches[0].size()
        return size
