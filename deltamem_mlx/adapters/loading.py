"""Adapters and models: load, save, convert, and check that one fits the other."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..hub import ADAPTER_FILES, MODEL_FILES, resolve
from ..model.attention import adapter_shapes, is_off
from ..model.patch import (
    attach,
    attachment,
    config_of,
    memory_layers,
    pack,
    refuse_attached,
    set_base_model,
)
from ..model.sites import choose_sites
from ..problems import first_few
from .files import AdapterFiles, read_adapter, write_adapter


def load(
    model: str, adapter: str | Path | None = None, **mlx_lm_load_kwargs: object
) -> tuple[nn.Module, TokenizerWrapper]:
    """``mlx_lm.load`` plus an adapter.

    Args:
        model (str): A local folder or a Hub repository, ``user/repo`` or ``user/repo@revision``.
        adapter (str): The same for a δ-mem adapter. Default: the plain model.
        **mlx_lm_load_kwargs: Passed to ``mlx_lm.load``.

    Returns:
        tuple[nn.Module, TokenizerWrapper]: The model and its tokenizer.

    Raises:
        FileNotFoundError: If a name is neither a folder nor a repository.
        ValueError: If the adapter is damaged or does not fit the model.
    """
    from mlx_lm import load as mlx_lm_load

    files = (
        None if adapter is None else read_adapter(resolve(adapter, allow_patterns=ADAPTER_FILES))
    )
    folder = resolve(model, allow_patterns=MODEL_FILES)
    loaded = mlx_lm_load(str(folder), **mlx_lm_load_kwargs)
    if files is not None:
        _load_files(loaded[0], files, base_model=str(model))
    return loaded


def load_adapter(model: nn.Module, adapter: str | Path) -> nn.Module:
    """Attach the adapter in a local folder or Hub repository to a loaded mlx-lm model.

    Every tensor's presence, name and shape is checked before the model is touched.

    Args:
        model (nn.Module): A model from ``mlx_lm.load``.
        adapter (str): A folder or repository in any of the three forms.

    Returns:
        nn.Module: The same model, with a memory.

    Raises:
        FileNotFoundError: If there is no such folder or repository, or a file is missing.
        ValueError: If the adapter is damaged or does not fit the model; of every kind of misfit the
          first few are listed.
    """
    return _load_files(model, read_adapter(resolve(adapter, allow_patterns=ADAPTER_FILES)))


def save_adapter(model: nn.Module, folder: str | Path, *, form: str = "mlx-lm") -> None:
    """Write the model's adapter to ``folder``.

    Args:
        model (nn.Module): A model with an adapter.
        folder (Path): Made if it is missing.
        form (str): ``mlx-lm`` (``adapter_config.json``, ``adapters.safetensors``) or
          ``published`` (``delta_mem_config.json``, ``delta_mem_adapter_mlx.npz``).

    Raises:
        ValueError: If the model has no adapter or the form is unknown.
    """
    write_adapter(adapter_of(model, Path(folder)), folder, form)


def convert_adapter(
    source: str | Path,
    folder: str | Path,
    *,
    form: str = "mlx-lm",
    dtype: mx.Dtype | None = None,
) -> AdapterFiles:
    """Write the adapter in ``source``, of any form, to ``folder`` in another.

    Args:
        source (str or Path): A local folder or a Hub repository.
        folder (str or Path): Where to write it.
        form (str): ``mlx-lm`` or ``published``.
        dtype (mx.Dtype): ``mx.float32`` or ``mx.float16``, for all tensors. Default: as they are.

    Returns:
        AdapterFiles: What was read. Its ``base_model`` has no place in the published form.

    Raises:
        FileNotFoundError, ValueError, ImportError: As for ``load_adapter``.
    """
    adapter = read_adapter(resolve(source, allow_patterns=ADAPTER_FILES))
    used = {n: t for n, t in adapter.tensors.items() if not is_off(n, adapter.config)}
    if dtype is not None:
        used = {name: tensor.astype(dtype) for name, tensor in used.items()}
    write_adapter(replace(adapter, tensors=used), folder, form)
    return adapter


def adapter_of(model: nn.Module, folder: Path = Path()) -> AdapterFiles:
    """The model's adapter as its files would hold it."""
    tensors = {
        f"{_prefix(layer)}{key}": attention[key].astype(mx.float32)
        for layer, attention in memory_layers(model).items()
        for key in attention.adapter_keys()
    }
    return AdapterFiles(folder, config_of(model), tensors, base_model_of(model))


def base_model_of(model: nn.Module) -> dict[str, object]:
    """Name, type and shape of the model that the adapter is attached to."""
    layers = memory_layers(model)
    first = next(iter(layers.values()))
    return {
        "name": attachment(model).base_model,
        "model_type": getattr(model, "model_type", None),
        "num_layers": len(model.layers),
        "hidden_size": first.memory_projections.dims,
    }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over the settings that act and all tensors of the model's adapter, in hex."""
    return fingerprint_of(adapter_of(model))


def fingerprint_of(adapter: AdapterFiles) -> str:
    """The same of an adapter on disk; tensors of heads that are off do not count."""
    digest = hashlib.sha256(json.dumps(adapter.config.to_dict(), sort_keys=True).encode())
    for name in sorted(adapter.tensors):
        if not is_off(name, adapter.config):
            digest.update(name.encode())
            digest.update(memoryview(adapter.tensors[name]))
    return digest.hexdigest()


def _load_files(
    model: nn.Module, adapter: AdapterFiles, base_model: str | None = None
) -> nn.Module:
    refuse_attached(model)
    tensors = _fitting(model, adapter)
    attach(model, adapter.config)
    layers = memory_layers(model)
    for layer, attention in layers.items():
        prefix = _prefix(layer)
        for key in attention.adapter_keys():
            # Whatever the file holds: training updates these.
            attention[key] = tensors[prefix + key].astype(mx.float32)
    set_base_model(model, base_model or adapter.base_model.get("name"))
    pack(model)
    return model


def _fitting(model: nn.Module, adapter: AdapterFiles) -> dict[str, mx.array]:
    """The adapter's tensors, if they are just those that the model needs."""
    try:
        sites = choose_sites(model, adapter.config)
    except ValueError as error:
        raise ValueError(_misfit(adapter, [str(error)])) from error
    expected = {
        _prefix(site.layer) + name: shape
        for site in sites
        for name, shape in adapter_shapes(site.projections, adapter.config).items()
    }
    given = {n: list(t.shape) for n, t in adapter.tensors.items()}
    shapes = [
        f"{name}: adapter {given[name]}, model {shape}"
        for name, shape in expected.items()
        if name in given and given[name] != shape
    ]
    needed = {n for n in expected if not is_off(n, adapter.config)}
    missing = [f"{name}: missing in the adapter" for name in sorted(needed - given.keys())]
    surplus = []
    layers = len(model.layers)
    for name in sorted(given.keys() - expected.keys()):
        parts = name.split(".")
        beyond = len(parts) > 2 and parts[2].isdigit() and int(parts[2]) >= layers
        reason = f"the model has {layers} layers" if beyond else "not used by this model and config"
        surplus.append(f"{name}: {reason}")
    if shapes or missing or surplus:
        problems = [line for kind in (shapes, missing, surplus) for line in first_few(kind)]
        raise ValueError(_misfit(adapter, problems))
    return adapter.tensors


def _misfit(adapter: AdapterFiles, problems: list[str]) -> str:
    name = adapter.base_model.get("name")
    hint = (
        f"Load the model it was trained on: {name}."
        if name
        else ("Load the model it was trained on.")
    )
    lines = "\n  ".join(problems)
    return f"Adapter '{adapter.folder}' does not fit this model:\n  {lines}\n{hint}"


def _prefix(layer: int) -> str:
    return f"model.layers.{layer}.self_attn."
