"""Which adapter a model has, told by its settings and weights."""

import copy
import hashlib
import json
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np

from ..config import HEADS, DeltaMemConfig, acting_settings
from .spread import Spread

Tensors = Mapping[str, mx.array]
Arrays = tuple[mx.array, ...]
_SETTINGS_OF_0_1_0 = (
    *("rank", "alpha", "num_state_heads", "delta_heads", "target_modules", "target_layers"),
    *("normalize_qk", "couple_lambda", "state_update_mode", "rankwise_gates"),
    *("memory_write_granularity", "beta_bias_init", "output_init", "base_slice_ref_width"),
    *("online_gain", "trainable_delta_scale", "delta_scale_init", "delta_scale_max"),
    *("delta_scale_granularity", "delta_o_rmsnorm", "delta_o_rmsnorm_eps"),
)


def is_off(name: str, config: DeltaMemConfig) -> bool:
    """Whether a parameter, by its name or full path, belongs to a head that is off.

    The PyTorch form holds those, as zeros.
    """
    return name.rpartition(".")[2] in {
        f"delta_{h}_proj" for h in HEADS if h not in config.delta_heads
    }


class AdapterHashes(NamedTuple):
    """SHA-256 in hex.

    Attributes:
        now (str): As what is saved carries it.
        before (str): As version 0.1.0 made it, which hashed settings that do nothing, too.
    """

    now: str
    before: str


def fingerprints_of(config: DeltaMemConfig, tensors: Tensors) -> AdapterHashes:
    """Of the settings and all tensors of an adapter, those of heads that are off apart.

    A setting counts if it acts, and is not at its default: so that the same adapter stays the same
    when settings are added.

    Args:
        config (DeltaMemConfig): The settings.
        tensors (Mapping[str, mx.array]): float32, by their names in a file.
    """
    values = config.to_dict()
    acting, first = acting_settings(config), DeltaMemConfig().to_dict()
    now = {name: value for name, value in acting.items() if value != first.get(name)}
    digests = [
        hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for settings in (now, {name: values[name] for name in _SETTINGS_OF_0_1_0})
    ]
    for name in sorted(tensors):
        if not is_off(name, config):
            data = np.array(tensors[name]).tobytes()
            for digest in digests:
                digest.update(name.encode())
                digest.update(data)
    return AdapterHashes(*(digest.hexdigest() for digest in digests))


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
        # Together, so that no other thread meets the one without the other.
        self._made: tuple[Arrays, AdapterHashes | None] = ((), None)

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex.

        Raises:
            RuntimeError: If parameters were replaced in one of several processes, of which the
              others do not know.
        """
        return self._fingerprints().now

    def wrote(self, fingerprint: str) -> bool:
        """Whether what has this fingerprint is of this adapter; raises as ``fingerprint`` does."""
        return fingerprint in self._fingerprints()

    def _fingerprints(self) -> AdapterHashes:
        layers, (sources, known) = self._parameters(), self._made
        same = map(operator.is_, chain.from_iterable(layers), sources)
        if known is None or not all(same):
            if self.apart and known is not None:
                raise RuntimeError(
                    "The adapter of a model in several processes was changed after it was loaded. "
                    "Change its files, and load it again."
                )
            known = fingerprints_of(self.config, self._whole())
            self._made = tuple(chain.from_iterable(layers)), known
        return known

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

    def go_on_as(self, other: "AdapterMark", memo: dict[int, Any]) -> None:
        """Be of the copy, made with ``memo``, of the model that ``other`` is of."""
        self.apart, self._made = other.apart, copy.deepcopy(other._made, memo)
