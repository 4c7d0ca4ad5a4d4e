"""Progress bars: on stderr, and none with `--quiet`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deltamem_mlx.cli import _output


@contextmanager
def answering(total: int) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` answers; gives a function to call with how many more are done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = _output.settings.quiet or not _output.stderr.is_terminal
    bar = Progress(*columns, console=_output.stderr, transient=True, disable=hidden)
    with bar:
        task = bar.add_task("answering", total=total)
        yield lambda answers: bar.advance(task, answers)
