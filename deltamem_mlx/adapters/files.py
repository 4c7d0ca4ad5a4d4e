"""Adapters on disk: three forms of the same tensors and settings, read and written."""

import json
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np

from .._version import __version__
from ..config import DeltaMemConfig
from ..files import read_json, write_atomically, write_text
from ..problems import first_few

FORMS = ("mlx-lm", "published")
FINE_TUNE_TYPE = "delta_mem"
MLX_LM = ("adapter_config.json", "adapters.safetensors")
PUBLISHED = ("delta_mem_config.json", "delta_mem_adapter_mlx.npz")
PYTORCH = ("delta_mem_config.json", "delta_mem_adapter.pt")


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read from disk.

    Args:
        folder (Path): Where it was read from.
        config (DeltaMemConfig): Its settings.
        tensors (dict[str, mx.array]): float32, by ``model.layers.<i>.self_attn.<name>``.
        base_model (dict[str, object]): What is known of the model it was trained on.
    """

    folder: Path
    config: DeltaMemConfig
    tensors: dict[str, mx.array]
    base_model: dict[str, object]


def is_delta_mem(folder: str | Path) -> bool:
    """Whether ``folder`` holds a δ-mem adapter, in any form."""
    folder = Path(folder)
    if (folder / "delta_mem_config.json").is_file():
        return True
    config = folder / MLX_LM[0]
    return config.is_file() and read_json(config).get("fine_tune_type") == FINE_TUNE_TYPE


def read_adapter(folder: str | Path) -> AdapterFiles:
    """Read the adapter in ``folder``, recognising its form by its files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds another kind of adapter, or a file is damaged.
        ImportError: If the adapter is in the PyTorch form and torch is not installed.
    """
    folder = Path(folder)
    base_model: dict[str, object] = {}
    if (folder / MLX_LM[0]).is_file():
        values = read_json(folder / MLX_LM[0])
        kind = values.get("fine_tune_type", "lora")
        if kind != FINE_TUNE_TYPE:
            raise ValueError(
                f"{folder} holds an adapter of type {kind!r}, expected {FINE_TUNE_TYPE!r}. "
                "Load it with mlx_lm.load(..., adapter_path=...)."
            )
        if isinstance(values.get("base_model"), dict):
            base_model = values["base_model"]
    config = _read_config(folder)
    weights = folder / _weights_in(folder)
    tensors = _finite(weights, _read_weights(weights))
    return AdapterFiles(folder, config, tensors, base_model)


def files_of(folder: str | Path) -> tuple[str, ...]:
    """Names of the files that ``read_adapter`` reads in ``folder``, the weights last.

    Raises:
        FileNotFoundError: If there are no weights.
    """
    folder = Path(folder)
    configs = [name for name in (MLX_LM[0], PUBLISHED[0]) if (folder / name).is_file()]
    return (*configs, _weights_in(folder))


def _weights_in(folder: Path) -> str:
    for name in (MLX_LM[1], PUBLISHED[1], PYTORCH[1]):
        if (folder / name).is_file():
            return name
    raise FileNotFoundError(
        f"{folder} holds a δ-mem config but no weights: expected {MLX_LM[1]}, {PUBLISHED[1]} or "
        f"{PYTORCH[1]}."
    )


def write_adapter(adapter: AdapterFiles, folder: str | Path, form: str = "mlx-lm") -> None:
    """Write an adapter to ``folder``, each file atomically.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    if form not in FORMS:
        raise ValueError(f"form is {form!r}, expected one of {', '.join(FORMS)}.")
    folder = Path(folder)
    if form == "published":
        config_name, weights_name = PUBLISHED
        values = adapter.config.to_dict()
        arrays = {name: np.array(tensor) for name, tensor in adapter.tensors.items()}
        write_atomically(folder / weights_name, lambda path: np.savez(path, **arrays))
    else:
        config_name, weights_name = MLX_LM
        values = {
            "fine_tune_type": FINE_TUNE_TYPE,
            "num_layers": len({name.split(".")[2] for name in adapter.tensors}),
            "base_model": adapter.base_model,
            "delta_mem": adapter.config.to_dict(),
            "deltamem_mlx_version": __version__,
        }
        metadata = {"format": "mlx"}
        write_atomically(
            folder / weights_name,
            lambda path: mx.save_safetensors(str(path), adapter.tensors, metadata),
        )
    write_text(folder / config_name, json.dumps(values, indent=2) + "\n")


def _read_config(folder: Path) -> DeltaMemConfig:
    try:
        return DeltaMemConfig.from_pretrained(folder)
    except (TypeError, ValueError) as error:
        raise type(error)(f"The adapter in {folder} has an unusable config. {error}") from error


def _read_safetensors(path: Path) -> dict[str, mx.array]:
    return dict(mx.load(str(path)))


def _read_npz(path: Path) -> dict[str, mx.array]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: mx.array(arrays[name].astype(np.float32)) for name in arrays.files}


def _read_torch(path: Path) -> dict[str, mx.array]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is in the PyTorch form, which needs torch: pip install 'deltamem-mlx[torch]'"
        ) from error
    values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict) or not all(torch.is_tensor(v) for v in values.values()):
        raise ValueError("it holds no state dict")
    return {name: mx.array(v.float().numpy()) for name, v in values.items()}


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".pt": _read_torch}


def _read_weights(path: Path) -> dict[str, mx.array]:
    """Tensors of a weights file; whatever a damaged file makes its reader raise is one error."""
    try:
        return _READERS[path.suffix](path)
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read: {reason}. It may be truncated, or no {path.suffix} file of "
            "tensors; download or convert it again."
        ) from error


def _finite(path: Path, tensors: dict[str, mx.array]) -> dict[str, mx.array]:
    """The tensors as float32, if all of them are finite."""
    tensors = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
    mx.eval(tensors)
    bad = [name for name, x in tensors.items() if not mx.isfinite(x).all().item()]
    if bad:
        lines = "\n  ".join(first_few(bad))
        raise ValueError(f"{path} holds NaN or infinite values in:\n  {lines}")
    return tensors
