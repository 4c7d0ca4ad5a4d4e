"""An online memory for mlx-lm models: δ-mem (arXiv 2605.12357) as an adapter."""

from .adapters import convert_adapter, load, load_adapter, save_adapter
from .config import DeltaMemConfig
from .memory import (
    forget_context,
    memory_state,
    observe,
    read_only,
    reset_memory,
    set_memory_state,
    write_spans,
)
from .ops import delta_scan
from .patch import attach, detach

__all__ = [
    "DeltaMemConfig",
    "attach",
    "convert_adapter",
    "delta_scan",
    "detach",
    "forget_context",
    "load",
    "load_adapter",
    "memory_state",
    "observe",
    "read_only",
    "reset_memory",
    "save_adapter",
    "set_memory_state",
    "write_spans",
]
