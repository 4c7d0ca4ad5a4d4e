"""How strongly the tokens of one conversation are written, watched while a batch serves it."""

from collections.abc import Mapping, Sequence

import mlx.core as mx
import numpy as np

from .spread import Spread

# Watching a layer takes a few operations a token: of many layers some will do.
_MOST_LAYERS = 4
# What is not computed holds on to all of its batch's projections.
_MOST_PENDING = 32


class WriteGauge:
    """The mean write gate of each token that a conversation feeds.

    It goes with its conversation through batches and copies, and is not part of the state.
    """

    def __init__(self) -> None:
        self._seen: dict[int, list[mx.array]] = {}

    def __deepcopy__(self, _: object) -> "WriteGauge":
        return self

    def see(self, layer: int, write: mx.array) -> None:
        """A layer has fed tokens with these write gates, float32 [T, H, r]."""
        parts = self._seen.setdefault(layer, [])
        parts.append(write.mean(axis=(-1, -2)))
        if len(parts) % _MOST_PENDING == 0:
            mx.async_eval(parts[-_MOST_PENDING:])

    def strengths(self, spread: Spread) -> np.ndarray:
        """float32 [T], the mean over the layers that were watched; between 0 and 1.

        Of a model in a pipeline all processes call it.
        """
        return mean_strengths(self._seen, spread)


def mean_strengths(seen: Mapping[int, Sequence[mx.array]], spread: Spread) -> np.ndarray:
    """float32 [T], the mean over the layers of all processes that were seen.

    Args:
        seen (Mapping): Layer index → mean write gates of the tokens of each call, [T'].
        spread (Spread): In a pipeline all processes call this.
    """
    here = {layer: np.array(mx.concatenate([*parts])) for layer, parts in seen.items() if parts}
    layers = [*spread.by_layer(here).values()]
    return np.mean(layers, axis=0) if layers else np.zeros(0, np.float32)


def watched_layers(layers: Sequence[int]) -> list[int]:
    """Those of some layers, spread evenly, that are watched."""
    ordered = sorted(layers)
    places = np.linspace(0, len(ordered) - 1, min(_MOST_LAYERS, len(ordered))).round().astype(int)
    return [ordered[i] for i in places]
