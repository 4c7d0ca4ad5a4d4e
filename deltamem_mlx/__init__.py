"""An online memory for mlx-lm models: δ-mem (arXiv 2605.12357) as an adapter.

The names below are imported when they are first used: mlx-lm takes seconds to import, and
``deltamem-mlx --help`` should not.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._version import __version__

if TYPE_CHECKING:  # what a checker and an editor see
    from .adapters.loading import convert_adapter as convert_adapter
    from .adapters.loading import load as load
    from .adapters.loading import load_adapter as load_adapter
    from .adapters.loading import save_adapter as save_adapter
    from .adapters.registration import register as register
    from .adapters.registration import unregister as unregister
    from .config import DeltaMemConfig as DeltaMemConfig
    from .memory.actions import forget_context as forget_context
    from .memory.actions import memory_state as memory_state
    from .memory.actions import observe as observe
    from .memory.actions import read_only as read_only
    from .memory.actions import reset_memory as reset_memory
    from .memory.actions import rewindable as rewindable
    from .memory.actions import set_memory_state as set_memory_state
    from .memory.actions import write_spans as write_spans
    from .memory.saving import load_memory as load_memory
    from .memory.saving import save_memory as save_memory
    from .memory.undo import redo_memory_file as redo_memory_file
    from .memory.undo import undo_memory_file as undo_memory_file
    from .model.patch import attach as attach
    from .model.patch import detach as detach
    from .ops import delta_scan as delta_scan
    from .session.session import MemorySession as MemorySession
    from .text.spans import Spans as Spans
    from .text.spans import message_spans as message_spans

_HOMES = {
    "adapters.loading": ("convert_adapter", "load", "load_adapter", "save_adapter"),
    "config": ("DeltaMemConfig",),
    "memory.actions": (
        "forget_context",
        "memory_state",
        "observe",
        "read_only",
        "reset_memory",
        "rewindable",
        "set_memory_state",
        "write_spans",
    ),
    "memory.saving": ("load_memory", "save_memory"),
    "memory.undo": ("redo_memory_file", "undo_memory_file"),
    "ops": ("delta_scan",),
    "model.patch": ("attach", "detach"),
    "adapters.registration": ("register", "unregister"),
    "session.session": ("MemorySession",),
    "text.spans": ("Spans", "message_spans"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
