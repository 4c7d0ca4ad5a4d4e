"""One call after which mlx-lm's own ``load`` takes δ-mem adapters by ``adapter_path``."""

from functools import wraps
from pathlib import Path

import mlx.nn as nn
from mlx_lm.tuner import utils as tuner_utils

from .files import is_delta_mem
from .loading import load_adapter


def register() -> None:
    """Make ``mlx_lm.load(..., adapter_path=FOLDER)`` load δ-mem adapters.

    mlx-lm's own chat, server and scripts then load them too; other adapters load as before.
    Calling it again changes nothing; ``unregister`` undoes it.
    """
    original = tuner_utils.load_adapters
    if hasattr(original, "before_deltamem"):
        return

    @wraps(original)
    def load_adapters(model: nn.Module, adapter_path: str) -> nn.Module:
        if Path(adapter_path).is_dir() and is_delta_mem(adapter_path):
            return load_adapter(model, adapter_path)
        return original(model, adapter_path)

    load_adapters.before_deltamem = original
    tuner_utils.load_adapters = load_adapters


def unregister() -> None:
    """Undo ``register``."""
    original = getattr(tuner_utils.load_adapters, "before_deltamem", None)
    if original is not None:
        tuner_utils.load_adapters = original
