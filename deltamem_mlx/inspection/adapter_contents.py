"""What an adapter holds, without loading a model."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..adapters.check import check_tensors
from ..adapters.files import AdapterFiles
from ..adapters.loading import fingerprint_of, read
from ..config import HEADS, DeltaMemConfig, acting_settings
from ..memory.measures import half_life
from ..model.fingerprint import is_off


@dataclass(frozen=True)
class AdapterLayer:
    """One layer of an adapter.

    Args:
        layer (int): Index of the layer.
        corrections (dict[str, float]): Head → norm of the correction's weights, scale included.
        write (tuple[float, float, float]): Mean, smallest and largest write gate at rest, that is,
          of a token which its projection adds nothing to: σ(beta_bias).
        keep (float): Mean keep gate at rest.
        half_life (float): Tokens after which the median keep gate, at rest, has halved a row.
    """

    layer: int
    corrections: dict[str, float]
    write: tuple[float, float, float]
    keep: float
    half_life: float


@dataclass(frozen=True)
class AdapterContents:
    """What an adapter holds.

    Args:
        name (str): As it was asked for.
        config (DeltaMemConfig): All its settings.
        settings (dict[str, object]): Those that act.
        tensors (dict[str, tuple[list[int], int]]): Name → shape, and how many layers have it.
        parameters (int): Numbers in all tensors that act.
        base_model (dict[str, object]): What is known of the model it was trained on.
        fingerprint (str): As memory files written under it carry.
        layers (list[AdapterLayer]): In order.
    """

    name: str
    config: DeltaMemConfig
    settings: dict[str, object]
    tensors: dict[str, tuple[list[int], int]]
    parameters: int
    base_model: dict[str, object]
    fingerprint: str
    layers: list[AdapterLayer]


def inspect_adapter(adapter: str | Path) -> AdapterContents:
    """What an adapter holds.

    Args:
        adapter (str): A local folder or Hub repository, in any of the three forms.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or a file is missing.
        ValueError: If the adapter is damaged.
    """
    files = read(adapter)
    files = replace(files, tensors={n: x for n, x in files.tensors.items() if _acts(n, files)})
    check_tensors(files)
    by_layer = _by_layer(files)
    counts = Counter(name for tensors in by_layer.values() for name in tensors)
    first = next(iter(by_layer.values()))
    return AdapterContents(
        name=str(adapter),
        config=files.config,
        settings=acting_settings(files.config),
        tensors={name: (list(first[name].shape), counts[name]) for name in sorted(first)},
        parameters=sum(tensor.size for tensor in files.tensors.values()),
        base_model=files.base_model,
        fingerprint=fingerprint_of(files),
        layers=[_layer(i, tensors, files.config) for i, tensors in by_layer.items()],
    )


def _acts(name: str, adapter: AdapterFiles) -> bool:
    """Whether a tensor is no correction that is off: the PyTorch form holds those, as zeros."""
    return not is_off(name, adapter.config)


def _by_layer(adapter: AdapterFiles) -> dict[int, dict[str, np.ndarray]]:
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in adapter.tensors.items():
        parts = name.split(".")
        found.setdefault(int(parts[2]), {})[parts[-1]] = np.array(tensor)
    return dict(sorted(found.items()))


def _layer(layer: int, tensors: dict[str, np.ndarray], config: DeltaMemConfig) -> AdapterLayer:
    write = _sigmoid(tensors["beta_bias"])
    keep = 1 - write
    if config.state_update_mode == "no_lambda":
        keep = np.ones_like(write)
    elif config.uses_lambda:
        keep = _sigmoid(tensors["lambda_bias"])
    corrections = {
        head: _scale(head, tensors, config) * float(np.linalg.norm(tensors[f"delta_{head}_proj"]))
        for head in config.delta_heads
    }
    return AdapterLayer(
        layer,
        corrections,
        (float(write.mean()), float(write.min()), float(write.max())),
        float(keep.mean()),
        float(np.median(half_life(keep))),
    )


def _scale(head: str, tensors: dict[str, np.ndarray], config: DeltaMemConfig) -> float:
    if not config.trainable_delta_scale:
        return config.scale
    raw = tensors["delta_scale_raw"]
    index = HEADS.index(head) if raw.size == len(HEADS) else 0
    return config.scale * float(_sigmoid(raw).flat[index]) * config.delta_scale_max


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))
