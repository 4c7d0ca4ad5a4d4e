"""What `train` shows of a course: a table before, a line and a bar for each step, the time left."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.table import Table

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.progress import counting
from deltamem_mlx.cli.frame.train_view import watching
from deltamem_mlx.model.sites import spans
from deltamem_mlx.training.course.viewing import Planned, Viewer
from deltamem_mlx.training.trainer import Trainer


class CourseView(Viewer):
    """Shows a course on stderr.

    Args:
        model (str): Its name.
        folder (Path): For the adapter.
    """

    def __init__(self, model: str, folder: Path):
        self.model, self.folder = model, folder
        self._steps = 0

    def plan(self, steps: Sequence[Planned]) -> None:
        """A table of all steps."""
        self._steps = len(steps)
        if output.settings.quiet:
            return
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("step", "it teaches or does"):
            table.add_column(name)
        for name in ("rows", "iterations", "learning rate", "about"):
            table.add_column(name, justify="right")
        for number, step in enumerate(steps, start=1):
            table.add_row(
                f"{number} {step.name}",
                step.does,
                f"{step.rows:,}" if step.rows else "",
                f"{step.iters:,}" if step.iters else "",
                f"{step.learning_rate:g}" if step.iters else "",
                "done" if step.done else duration(step.seconds),
            )
        left = sum(step.seconds for step in steps if not step.done)
        output.stderr.print(table, highlight=False)
        output.note(f"About {duration(left)} in all. The adapter: {self.folder}.")
        output.note("It may be stopped at any time; the same command goes on.")

    def note(self, text: str) -> None:
        """What a person should know of their own conversations."""
        output.warn(text)

    def begin(self, step: Planned, number: int, left: float) -> None:
        """Which step it is, and how long all that are left take."""
        output.note(
            f"Step {number} of {self._steps}, {step.name}: {step.does}; about "
            f"{duration(step.seconds)}, {duration(left)} with those after it."
        )

    def end(self, step: Planned, result: Mapping[str, Any], seconds: float) -> None:
        """How long it took, and what came of it."""
        parts = [f"{step.name}: done in {duration(seconds)}", *_found(step.name, result)]
        output.note("; ".join(parts) + ".")

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """A bar."""
        return counting(what, total)

    def training(self, trainer: Trainer) -> AbstractContextManager[None]:
        """A bar and lines, as of any training."""
        return watching(trainer)


def _found(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    """What a step found, in words."""
    if name == "write":
        yield f"{result['turns']:,} turns of talk and text, {result['asked']:,} answers"
    elif name == "start":
        best, *others = result["tried"]
        yield (
            f"a memory in layers {spans(best['layers'])}, the best of {1 + len(others)} starts: "
            f"{best['foreign'] - best['loss']:.3f} nats of what was told are remembered"
        )
    elif name == "quiet":
        yield f"{result['share']:.0%} of the correction is made; {_change(result, 'share')}"


def _change(result: Mapping[str, Any], chosen: str) -> str:
    """Of the held-out loss, and of what is remembered."""
    before, after = (result["tried"][str(at)] for at in (0.0, result[chosen]))
    memories = [one["foreign"] - one["own"] for one in (before, after)]
    return (
        f"held-out loss {before['loss']:.3f} → {after['loss']:.3f}, remembered "
        f"{memories[0]:.3f} → {memories[1]:.3f} nats"
    )


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
