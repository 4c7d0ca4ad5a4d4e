"""The processes of mlx's distributed engine that hold one model together, and what they tell."""

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np
from mlx_lm.generate import generation_stream

T = TypeVar("T")


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
        data = pickle.dumps(value)
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
        data = pickle.dumps(value) if self.rank == 0 else b""
        settle()
        size = int(self._summed(mx.array([len(data)], mx.int32))[0])
        mine = _bytes(data) if self.rank == 0 else mx.zeros((size,), mx.uint8)
        shared: T = _loaded(self._summed(mine))
        return shared

    def by_first(self, act: Callable[[], T]) -> T:
        """What ``act`` gives in the first of them; what it raises there, all raise."""
        if self.group is None:
            return act()
        outcome = self.share(_outcome(act) if self.rank == 0 else None)
        return _unwrapped(outcome, self.rank == 0, 0)

    def agree(self, act: Callable[[], T]) -> list[T]:
        """What ``act`` gives in each of them; what it raises in one, all raise."""
        if self.group is None:
            return [act()]
        outcomes = self.gather(_outcome(act))
        return [_unwrapped(out, i == self.rank, i) for i, out in enumerate(outcomes)]

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


def _outcome(act: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return act(), None
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # one that cannot be sent: its words can
            return None, RuntimeError(f"{type(error).__name__}: {error}")
        return None, error


def _unwrapped(outcome: Any, mine: bool, rank: int) -> Any:
    value, error = outcome
    if error is None:
        return value
    if not mine:
        error.add_note(f"(in the process with rank {rank})")
    raise error


def _bytes(data: bytes) -> mx.array:
    return mx.array(np.frombuffer(data, np.uint8))


def _loaded(data: np.ndarray) -> Any:
    return pickle.loads(data.tobytes())
