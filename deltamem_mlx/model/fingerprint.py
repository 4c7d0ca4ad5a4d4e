"""Which adapter a model has, told by its settings and weights."""

import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import chain

import mlx.core as mx
import numpy as np

from ..config import HEADS, DeltaMemConfig
from .spread import Spread

Tensors = Mapping[str, mx.array]
Arrays = tuple[mx.array, ...]


def is_off(name: str, config: DeltaMemConfig) -> bool:
    """Whether a parameter, by its name or full path, belongs to a head that is off.

    The PyTorch form holds those, as zeros.
    """
    return name.rpartition(".")[2] in {
        f"delta_{h}_proj" for h in HEADS if h not in config.delta_heads
    }


def fingerprint_of(config: DeltaMemConfig, tensors: Tensors) -> str:
    """SHA-256 over the settings and all tensors of an adapter, those of heads that are off apart.

    The tensors are float32, by their names in a file.
    """
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for name in sorted(tensors):
        if not is_off(name, config):
            digest.update(name.encode())
            digest.update(np.array(tensors[name]).tobytes())
    return digest.hexdigest()


class AdapterMark:
    """The fingerprint of the adapter that a model has now.

    All memories of the model's prompt caches share one. It is made anew when a parameter was
    replaced, and kept when the adapter is taken away.

    Args:
        config (DeltaMemConfig): The adapter's settings.
        whole (Callable[[], Tensors]): Gives its tensors as float32, by all processes together.
        parameters (Callable[[], Sequence[mx.array]]): Gives them as they are here, without names,
          in one order: mlx-lm asks every layer's cache for its state after a call, and each looks
          whether one of them was replaced.
        spread (Spread): Which processes have the model.

    Attributes:
        apart (bool): No process has all of the tensors: the fingerprint is made once, together.
    """

    def __init__(
        self,
        config: DeltaMemConfig,
        whole: Callable[[], Tensors],
        parameters: Callable[[], Sequence[Arrays]],
        spread: Spread,
    ):
        self.config, self._whole, self._parameters = config, whole, parameters
        self.spread, self.apart = spread, spread.pipelined
        self._sources: Arrays = ()
        self._fingerprint = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex.

        Raises:
            RuntimeError: If parameters were replaced in one of several processes, of which the
              others do not know.
        """
        layers = self._parameters()
        same = map(operator.is_, chain.from_iterable(layers), self._sources)
        if not self._fingerprint or not all(same):
            if self.apart and self._fingerprint:
                raise RuntimeError(
                    "The adapter of a model in several processes was changed after it was loaded. "
                    "Change its files, and load it again."
                )
            self._sources = tuple(chain.from_iterable(layers))
            self._fingerprint = fingerprint_of(self.config, self._whole())
        return self._fingerprint

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.fingerprint,)  # what another process can know of it

    def keep(self) -> None:
        """Go on without the model: its adapter is taken away."""
        parameters = self._parameters()
        self._parameters = lambda: parameters
        if not self.apart:  # else it was made when the adapter was loaded
            tensors = self._whole()
            self._whole = lambda: tensors

    def __deepcopy__(self, memo: dict[int, object]) -> "AdapterMark":
        return self  # a copy of a prompt cache belongs to the same adapter
