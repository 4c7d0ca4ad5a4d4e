"""Progress bars: on stderr, and none with `--quiet`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, TypeVar

from deltamem_mlx.cli.frame import output

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

    from deltamem_mlx.session.generation import Generation

T = TypeVar("T")


def answering(total: int | None) -> AbstractContextManager[Callable[[int], None]]:
    """A bar over ``total`` answers, as `counting`."""
    return counting("answering", total)


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar over ``total`` things (None: nobody knows how many); gives a function to call with how
    many more are done.
    """
    from rich.progress import MofNCompleteColumn

    with _bar(MofNCompleteColumn()) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def reading(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over tokens; gives a function to call with how many were read, and of how many.

    It begins with the first step that does not end the work: what is short shows none.
    """
    from rich.progress import TextColumn

    figures = TextColumn("{task.completed:,.0f} of {task.total:,.0f} tokens")
    with ExitStack() as stack:
        bar: Progress | None = None

        def show(tokens: int, total: int) -> None:
            nonlocal bar
            if bar is None and 0 < tokens < total:
                bar = stack.enter_context(_bar(figures))
                bar.add_task(what, total=total)
            if bar is not None:
                bar.update(bar.task_ids[0], completed=tokens, total=total)

        yield show


def watched(stream: "Callable[[Generation], Iterator[T]]", generation: "Generation") -> Iterator[T]:
    """The pieces of an answer, after a bar while its prompt is being read.

    - stream: begins the answer; it is given ``generation`` with a callback.
    """
    with reading("reading") as show:
        pieces = stream({**generation, "prompt_progress_callback": show})
        first = next(pieces, None)
    if first is not None:
        yield first
        yield from pieces


@contextmanager
def telling(total: int) -> Iterator[Callable[[str, float, int], None]]:
    """A bar over about ``total`` tokens that are told.

    Gives a function to call with the file's name, how many of those are done, and the tokens that
    they really were.
    """
    from rich.progress import TextColumn

    with _bar(TextColumn("{task.fields[said]}")) as bar:
        task = bar.add_task("remembering", total=total, said="")

        def show(name: str, done: float, tokens: int) -> None:
            about = f" of about {tokens * total / done:,.0f}" if done else ""
            bar.update(task, description=name, completed=done, said=f"{tokens:,}{about} tokens")

        yield show


@contextmanager
def _bar(figures: "ProgressColumn") -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    hidden = output.settings.quiet or not output.stderr.is_terminal
    # This stderr, whatever is put in its place while a library works that prints too much.
    console = Console(file=sys.stderr)
    name = TextColumn("{task.description}", markup=False)
    columns = (name, BarColumn(), figures, TimeRemainingColumn())
    before = output.settings.bar
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        output.settings.bar = before if hidden else console
        try:
            yield bar
        finally:
            output.settings.bar = before
