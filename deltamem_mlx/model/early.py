"""Computing that begins while Python still builds the graph of the layers above.

A call of several tokens is as a rule computed at once when its whole graph is there, and a device
waits until then: of a chat's turn on a small model that is as long as what a memory adds.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import lru_cache

import mlx.core as mx

_WHOLE: ContextVar[bool] = ContextVar("whole graphs", default=False)


def begin(x: mx.array) -> None:
    """Begin to compute an array, if that is of use.

    It is not where Python and what computes would take each other's cores, and cannot be while a
    function is being transformed.
    """
    if not _WHOLE.get() and _has_a_core(mx.default_device().type):
        with suppress(ValueError):
            mx.async_eval(x)


@contextmanager
def whole_graphs() -> Iterator[None]:
    """Within this context graphs stay whole, to be looked at."""
    token = _WHOLE.set(True)
    try:
        yield
    finally:
        _WHOLE.reset(token)


@lru_cache
def _has_a_core(device: mx.DeviceType) -> bool:
    """Whether a core is left to Python: always beside a GPU, but OpenBLAS may take all."""
    if device == mx.DeviceType.gpu:
        return True
    try:
        threads: int = ctypes.CDLL(None).openblas_get_num_threads()
    except (AttributeError, OSError, TypeError):  # another BLAS: Accelerate, or MLX's own
        return True
    return threads < (os.cpu_count() or 1)
