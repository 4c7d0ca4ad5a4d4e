"""The processes of mlx's distributed engine that hold one model together, and what they tell."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generation_stream

T = TypeVar("T")
_RANK = "_deltamem_rank"  # of an error that another process raised


class Ranks:
    """The processes of a group, of which this is one.

    Each method is a call that all of them make, in the same order: one that is missing keeps the
    others waiting. What they tell each other is pickled, as mlx-lm's server does it: they are
    processes of one person.

    Args:
        group (mx.distributed.Group): ``None``: this process is alone, and tells nothing.
    """

    def __init__(self, group: mx.distributed.Group | None = None):
        self.group = None if group is None or group.size() == 1 else group

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self.group is None else self.group.size()

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return 0 if self.group is None else self.group.rank()

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.group is None

    def gather(self, value: T) -> list[T]:
        """What each of them has, in their order; arrays among it are computed."""
        if self.group is None:
            return [value]
        data = _sent(value)
        settle()
        sizes = self._gathered(mx.array([len(data)], mx.int32))
        padded = _bytes(data.ljust(int(sizes.max()), b"\0"))
        rows = self._gathered(padded[None])
        return [_loaded(row[:size]) for row, size in zip(rows, sizes, strict=True)]

    def share(self, value: T | None = None) -> T:
        """What the first of them has; what the others give is not looked at."""
        if self.group is None:
            assert value is not None
            return value
        data = _sent(value) if self.rank == 0 else b""
        settle()
        size = int(self._summed(mx.array([len(data)], mx.int32))[0])
        mine = _bytes(data) if self.rank == 0 else mx.zeros((size,), mx.uint8)
        received = self._summed(mine)
        if self.rank == 0:
            assert value is not None
            return value
        shared: T = _loaded(received)
        return shared

    def by_first(self, act: Callable[[], T]) -> T:
        """What ``act`` gives in the first of them; what it raises there, all raise."""
        if self.group is None:
            return act()
        own = _outcome(act) if self.rank == 0 else None
        value: T = _unwrapped(self.share(own), 0, self.rank)
        return value

    def agree(self, act: Callable[[], T]) -> list[T]:
        """What ``act`` gives in each of them; what it raises in one, all raise."""
        if self.group is None:
            return [act()]
        own = _outcome(act)
        outcomes = self.gather(own)
        outcomes[self.rank] = own
        return [_unwrapped(outcome, i, self.rank) for i, outcome in enumerate(outcomes)]

    def any(self, flag: bool) -> bool:
        """Whether it is so in one of them."""
        if self.group is None:
            return flag
        settle()
        return bool(self._summed(mx.array([int(flag)], mx.int32))[0])

    def _gathered(self, x: mx.array) -> np.ndarray:
        return np.array(mx.distributed.all_gather(x, group=self.group, stream=mx.cpu))

    def _summed(self, x: mx.array) -> np.ndarray:
        return np.array(mx.distributed.all_sum(x, group=self.group, stream=mx.cpu))


def settle() -> None:
    """Wait for what is being computed: its messages and the next ones may not overtake."""
    mx.synchronize()
    mx.synchronize(generation_stream)


def elsewhere(error: BaseException) -> int | None:
    """In which other process an error was raised first; None: in this one."""
    rank: int | None = getattr(error, _RANK, None)
    return rank


def _outcome(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        return None, error


def _unwrapped(outcome: Any, rank: int, here: int) -> Any:
    value, error = outcome
    if error is None:
        return value
    if rank != here:
        setattr(error, _RANK, rank)
    raise error


def _sent(value: object) -> bytes:
    """A value as bytes. An error that cannot be put together again is sent in words."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Exception):
        try:
            pickle.loads(pickle.dumps(value[1]))
        except Exception:
            value = None, RuntimeError(f"{type(value[1]).__name__}: {value[1]}")
    return pickle.dumps(value)


def _bytes(data: bytes) -> mx.array:
    return mx.array(np.frombuffer(data, np.uint8))


def _loaded(data: np.ndarray) -> Any:
    try:
        return pickle.loads(data.tobytes())
    except (pickle.UnpicklingError, EOFError, ValueError) as error:
        # The ring hands out what happens to lie in its buffers where a process is gone.
        raise ConnectionError(
            "Another process of this run cannot be reached: it has ended, or its machine is gone."
        ) from error
