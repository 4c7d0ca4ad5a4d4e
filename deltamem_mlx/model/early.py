"""Computing that begins while Python still builds the graph of the layers above.

A call of several tokens is as a rule computed at once when its whole graph is there, and a device
waits until then: of a chat's turn on a small model that is as long as what a memory adds.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import mlx.core as mx

_WHOLE: ContextVar[bool] = ContextVar("whole graphs", default=False)


def begin(x: mx.array) -> None:
    """Begin to compute an array, unless nothing can be now: a function is being transformed."""
    if not _WHOLE.get():
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
