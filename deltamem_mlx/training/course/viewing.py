"""Who watches a course, and what they are told."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

from ..trainer import Trainer


class Planned(NamedTuple):
    """A step of a course, before it is taken.

    Attributes:
        name (str): Of its folder.
        does (str): In a few words.
        rows (int): Conversations; 0 where there are none to count.
        iters (int): Iterations of a training; 0: it is none.
        learning_rate (float): Of a training.
        seconds (float): About how long it takes.
        done (bool): It is done already.
    """

    name: str
    does: str
    rows: int
    iters: int
    learning_rate: float
    seconds: float
    done: bool


class Viewer:
    """Is told how a course goes; this one says nothing."""

    def plan(self, steps: Sequence[Planned]) -> None:
        """Before the first step."""

    def note(self, text: str) -> None:
        """What a person should know of their own conversations."""

    def begin(self, step: Planned, number: int, left: float) -> None:
        """Before a step, the number-th; all that are left take about so many seconds."""

    def end(self, step: Planned, result: Mapping[str, Any], seconds: float) -> None:
        """After a step: what it wrote down, and how long it took."""

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """While so many things are done; gives what to call with how many more are."""
        return _silent()

    def training(self, trainer: Trainer) -> AbstractContextManager[None]:
        """While a training runs."""
        return nullcontext()


@contextmanager
def _silent() -> Iterator[Callable[[int], None]]:
    yield lambda done: None
