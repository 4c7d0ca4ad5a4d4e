"""One call after which mlx-lm's own ``load`` takes δ-mem adapters by ``adapter_path``."""

from pathlib import Path

import mlx.nn as nn

from ..compat import LoadAdapters, load_adapters_with
from ..forms import is_delta_mem
from .loading import load_adapter


def register() -> None:
    """Make ``mlx_lm.load(..., adapter_path=FOLDER)`` load δ-mem adapters.

    mlx-lm's own chat, server and scripts then load them too; other adapters load as before.
    Calling it again changes nothing; ``unregister`` undoes it.
    """
    load_adapters_with(_ours_too)


def unregister() -> None:
    """Undo ``register``."""
    load_adapters_with(None)


def _ours_too(original: LoadAdapters) -> LoadAdapters:
    def load_adapters(model: nn.Module, adapter_path: str) -> nn.Module:
        if Path(adapter_path).is_dir() and is_delta_mem(adapter_path):
            return load_adapter(model, adapter_path)
        return original(model, adapter_path)

    return load_adapters
