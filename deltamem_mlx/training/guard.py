"""What ends a run before its time: a loss that explodes, and Ctrl-C."""

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from .checkpoint import Progress
from .update import Figures

WINDOW = 10


class Diverged(ArithmeticError):
    """The loss is no number any more, or many times what it was."""


def check_loss(figures: Figures, progress: Progress, iteration: int) -> None:
    """Raise `Diverged` if the figures of an update end the run.

    Args:
        figures (Figures): Of the update.
        progress (Progress): Before it; its losses are brought up to date.
        iteration (int): For the message.
    """
    if not (math.isfinite(figures.loss) and math.isfinite(figures.grad_norm)):
        raise Diverged(
            f"The loss became {figures.loss} at iteration {iteration} (gradient norm "
            f"{figures.grad_norm}, learning rate {figures.learning_rate:.3g})"
        )
    progress.recent = [*progress.recent, figures.ce][-WINDOW:]
    if len(progress.first) < WINDOW:
        progress.first.append(figures.ce)
        return
    before, now = (sum(losses) / WINDOW for losses in (progress.first, progress.recent))
    if now > 3 * before + 3:
        raise Diverged(
            f"The loss grew from {before:.3f} to {now:.3f} at iteration {iteration} (learning "
            f"rate {figures.learning_rate:.3g})"
        )


@contextmanager
def interruptible(stop: Callable[[], None]) -> Iterator[None]:
    """Within this context the first Ctrl-C calls ``stop``; the second interrupts as ever."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
