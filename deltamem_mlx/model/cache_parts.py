"""A part of a prompt cache by where it lies: caches of a layer may hold caches themselves."""

from collections.abc import MutableSequence, Sequence
from typing import Any

from mlx_lm.models.cache import CacheList

from ..compat import BaseCache
from .found import CachePath


def part_at(caches: Sequence[BaseCache | None], path: CachePath) -> BaseCache | None:
    """The part of a prompt cache at a path of indices; None: it does not reach as far."""
    index, *rest = path
    part = caches[index] if index < len(caches) else None
    return part_at(part.caches, tuple(rest)) if rest and isinstance(part, CacheList) else part


def put_part(caches: MutableSequence[Any], path: CachePath, new: BaseCache) -> None:
    """Replace the part of a prompt cache at a path, or add it at the end."""
    index, *rest = path
    if rest:
        inner = list(caches[index].caches)
        put_part(inner, tuple(rest), new)
        caches[index] = CacheList(*inner)
    elif index == len(caches):
        caches.append(new)
    else:
        caches[index] = new
