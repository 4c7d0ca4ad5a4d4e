"""Progress bars: on stderr, and none with `--quiet`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from deltamem_mlx.cli.frame import output


@contextmanager
def answering(total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` answers (None: nobody knows how many); gives a function to call with how
    many more are done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    hidden = output.settings.quiet or not output.stderr.is_terminal
    # This stderr, whatever is put in its place while a library works that prints too much.
    console = Console(file=sys.stderr)
    bar = Progress(*columns, console=console, transient=True, disable=hidden)
    with bar:
        task = bar.add_task("answering", total=total)
        yield lambda answers: bar.advance(task, answers)
