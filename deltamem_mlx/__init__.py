"""An online memory for mlx-lm models: δ-mem (arXiv 2605.12357) as an adapter.

The names below are imported when they are first used: mlx-lm takes seconds to import, and
``deltamem-mlx --help`` should not.
"""

from importlib import import_module

from ._version import __version__

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
    "memory.file": ("load_memory", "save_memory"),
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
