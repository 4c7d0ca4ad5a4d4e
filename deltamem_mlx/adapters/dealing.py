"""An adapter that the first of several processes reads, and of which each holds its part."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn

from ..model.patch import attachment, memory_layers, prefix_of
from ..model.sites import Choice
from ..ranks import Ranks
from .files import AdapterFiles


def read_by_first(ranks: Ranks, read: Callable[[], AdapterFiles]) -> AdapterFiles:
    """What ``read`` gives in the first process; what it raises there, all raise.

    The others have settings, names and shapes: their tensors are zeros that nobody computes, until
    `deal_out` brings what is theirs.
    """
    own: list[AdapterFiles] = []

    def described() -> tuple[AdapterFiles, dict[str, tuple[int, ...]]]:
        own.append(read())
        shapes = {name: x.shape for name, x in own[0].tensors.items()}
        return replace(own[0], tensors={}), shapes

    files, shapes = ranks.by_first(described)
    if own:
        return own[0]
    return replace(files, tensors={name: mx.zeros(shape) for name, shape in shapes.items()})


def deal_out(model: nn.Module, choice: Choice, tensors: Mapping[str, mx.array]) -> None:
    """Give each process of a model that was patched its part of the first one's tensors.

    They come layer by layer: of the others none has more than one layer beside what it keeps.
    """
    ranks, layers = choice.spread.ranks, memory_layers(model)
    for site in choice.sites:
        prefix = prefix_of(site.layer)
        layer = ranks.share(
            {n.removeprefix(prefix): x for n, x in tensors.items() if n.startswith(prefix)}
        )
        if site.layer in layers:
            layers[site.layer].hold(layer, rows_only=True)
    attachment(model).mark.apart |= any(a.shared_rows() for a in layers.values())
