"""One turn at a time: a lock that an answer holds while it is being streamed."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from types import GeneratorType
from typing import TypeVar

T = TypeVar("T")


class TurnLock:
    """Held by a turn. Threads wait for each other's turns.

    A thread that begins something while its own stream is still open closes that stream first:
    leaving a loop over an answer does not close it where something else refers to the iterator,
    a traceback for example.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None
        self._turn: object = None

    def run(self, answer: Generator[T, None, None]) -> Generator[T, None, None]:
        """Yield from ``answer``, holding the lock from the first piece to the last."""
        self._acquire(answer)
        try:
            yield from answer
        finally:
            self._release(answer)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock, unless this thread has it: for looking on during one's own turn."""
        if self._owner == threading.get_ident():
            yield
        else:
            with self:
                yield

    def __enter__(self) -> None:
        self._acquire(threading.get_ident())

    def __exit__(self, *_: object) -> None:
        self._release(threading.get_ident())

    def _acquire(self, turn: object) -> None:
        if self._owner == threading.get_ident():
            self._end_own_turn()
        self._lock.acquire()
        self._owner, self._turn = threading.get_ident(), turn

    def _end_own_turn(self) -> None:
        open_turn = self._turn
        if not isinstance(open_turn, GeneratorType) or open_turn.gi_running:
            raise RuntimeError(
                "A turn of this session is running in this thread, and a callback of it tried to "
                "begin another. Use session.fork() for that."
            )
        open_turn.close()
        self._release(open_turn)

    def _release(self, turn: object) -> None:
        if self._turn == turn:
            self._owner = self._turn = None
            self._lock.release()
