"""A command as one of several processes of mlx.launch: the first speaks, the others follow it."""

import atexit
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from deltamem_mlx.cli.frame import errors, output
from deltamem_mlx.cli.frame.errors import FAILED, MISUSED, OTHER_ENDED, UsageError, sentence
from deltamem_mlx.cli.frame.lifelines import Lifelines

if TYPE_CHECKING:
    from deltamem_mlx.ranks import Ranks

T = TypeVar("T")
# Of mlx.launch with its own backends, and with MPI.
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
# For the first process to say what all of them met, before mlx.launch ends it with this one.
_PATIENCE = 5.0
_MOMENT = 1.5  # seconds, in which what another process met is heard here
_LINES: ContextVar[Lifelines | None] = ContextVar("lines", default=None)


def rank() -> int | None:
    """Which process of mlx.launch this is; None: it was not started by that."""
    found = next((os.environ[name] for name in _RANKS if name in os.environ), "")
    return int(found) if found.isdecimal() else None


def follows() -> bool:
    """Whether another process speaks for this one."""
    return bool(rank())


def be_silent() -> None:
    """Say nothing from now on."""
    output.set_quiet(True)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def report(error: Exception) -> int:
    """What `errors.report` does, where several processes meet the same: the first one says it."""
    lines = _LINES.get()
    if not follows():
        if lines is not None:
            if isinstance(error, RuntimeError | ConnectionError):
                time.sleep(_MOMENT)  # if that is since another one ended, its end is said instead
            lines.part(sentence(error))
        return errors.report(error)
    mine = errors.rank_of(error) is None
    if lines is not None and mine:
        lines.part(sentence(error))
    time.sleep(_PATIENCE)
    if errors.misused(error):
        return MISUSED
    if lines is None and mine:
        print(f"Error: rank {rank()}: {sentence(error)}", file=sys.__stderr__, flush=True)
    return FAILED


def world() -> "Ranks":
    """The processes of this run; this one alone, where it was not started by mlx.launch."""
    from deltamem_mlx.ranks import Ranks

    if rank() is None:
        return Ranks()
    import mlx.core as mx

    return Ranks(mx.distributed.init())


def refuse_several() -> None:
    """Raises UsageError under mlx.launch: the command is for one process."""
    if rank() is not None and not world().alone:
        raise UsageError("This command is for one process: start it without mlx.launch.")


def first(act: Callable[[], T]) -> T:
    """What ``act`` gives in the first process, on whose machine people's files are.

    In one process it waits for no import: a wrong path is said at once.
    """
    return act() if rank() is None else world().by_first(act)


def folder_here(folder: Path | None) -> Path | None:
    """Where this process keeps what the first one keeps in ``folder``: the same files, in its own.

    A process that follows has a copy, which nobody looks at.
    """
    if folder is None or world().alone:
        return folder
    there = first(lambda: _files_in(folder))
    if not follows():
        return folder
    copy = Path(tempfile.mkdtemp(prefix="deltamem-mlx-"))
    for name, data in there.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(data)
    return copy


def _files_in(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def end_with_the_others() -> None:
    """From now on this process ends where another one has, whatever it waits for.

    What the others were to send does not come any more. It hears of that by a line of its own, and
    from mlx.launch, which then ends all.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while data := os.read(reader, 64):
            if signal.SIGTERM in data:
                time.sleep(2 * _MOMENT)  # which one has ended may still be heard
                _end("" if follows() else OTHER_ENDED)

    threading.Thread(target=watch, daemon=True).start()
    lines = Lifelines(world(), _heard)
    _LINES.set(lines)
    atexit.register(lines.part)


def _heard(other: int, host: str, word: str) -> None:
    """Another process has ended."""
    if follows() and (word or rank() != 1):
        _end("")  # the first one, or the second, says it
    name = f"rank {other}{host and f' ({host})'}"
    if word:
        _end(f"{name}: {word}")
    _end(
        f"{name} of this run has ended: its process crashed or was killed, or its machine is gone. "
        "What was saved is whole; start the run again."
    )


def _end(sentence: str) -> NoReturn:
    if sentence:
        print(f"Error: {sentence}", file=sys.__stderr__, flush=True)
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(FAILED)
