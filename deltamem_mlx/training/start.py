"""What a run starts from: a fresh adapter, or the weights of another run."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ..adapters.dealing import read_by_first
from ..adapters.files import AdapterFiles, read_copy
from ..adapters.loading import attach_adapter, read
from ..config import DeltaMemConfig
from ..model.patch import attach, hold_whole, set_base_model
from ..model.spread import spread_of


def fresh_adapter(
    model: nn.Module, config: DeltaMemConfig, *, seed: int, base_model: str | None = None
) -> nn.Module:
    """Attach a new adapter that knows the name of its model."""
    attach(model, config, seed=seed)
    set_base_model(model, base_model)
    return model


def adapter_from(
    model: nn.Module,
    source: str | Path,
    *,
    given: Mapping[str, Any] | None = None,
    base_model: str | None = None,
) -> nn.Module:
    """Attach an adapter to train further.

    Args:
        model (nn.Module): A model without an adapter.
        source (str): A ``.safetensors`` file beside its ``adapter_config.json``, such as a numbered
          copy of a run; or a folder or Hub repository of an adapter in any form.
        given (Mapping[str, Any]): Settings that the adapter must have.
        base_model (str): The model's name.

    Raises:
        FileNotFoundError: If there is no such adapter.
        ValueError: If it does not fit the model, or has other settings than those given.
    """
    adapter = read_by_first(spread_of(model).ranks, lambda: _read(source))
    differing = [
        f"{field.name}: {wanted!r}, the adapter has {has!r}"
        for field in fields(DeltaMemConfig)
        if (wanted := (given or {}).get(field.name)) is not None
        and wanted != (has := getattr(adapter.config, field.name))
    ]
    if differing:
        raise ValueError(
            f"The adapter in {source} was made with other settings:\n  "
            + "\n  ".join(differing)
            + "\nLeave those flags out: an adapter that is trained further keeps its settings."
        )
    attach_adapter(model, adapter, base_model)
    hold_whole(model)
    return model


def _read(source: str | Path) -> AdapterFiles:
    path = Path(source).expanduser()
    if not path.is_file():
        return read(source)
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"{path} is no .safetensors file. Expected an adapter's weights.")
    return read_copy(path)
