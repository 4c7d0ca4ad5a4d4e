"""A command as one of several processes of mlx.launch: the first speaks, the others follow it."""

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.errors import FAILED, MISUSED, OTHER_ENDED, UsageError, sentence

if TYPE_CHECKING:
    from deltamem_mlx.ranks import Ranks

T = TypeVar("T")
# Of mlx.launch with its own backends, and with MPI.
_RANKS = ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
# For the first process to say what all of them met, before mlx.launch ends it with this one.
_PATIENCE = 5.0


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
    """What `errors.report` does, in a process that follows: the first one says what all met."""
    from deltamem_mlx.cli.frame import errors

    time.sleep(_PATIENCE)
    if isinstance(error, UsageError):
        return MISUSED
    if errors.rank_of(error) is None and sys.__stderr__ is not None:
        sys.__stderr__.write(f"Error: rank {rank()}: {sentence(error)}\n")
        sys.__stderr__.flush()
    return FAILED


def world() -> "Ranks":
    """The processes of this run; this one alone, where it was not started by mlx.launch."""
    from deltamem_mlx.ranks import Ranks

    if rank() is None:
        return Ranks()
    import mlx.core as mx

    return Ranks(mx.distributed.init())


def first(act: Callable[[], T]) -> T:
    """What ``act`` gives in the first process, on whose machine people's files are."""
    return world().by_first(act)


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
    """From now on this process ends when mlx.launch ends it, as it does where another one ended.

    Whatever it waits for: what the others were to send does not come any more.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        while data := os.read(reader, 64):
            if signal.SIGTERM in data:
                _end()

    threading.Thread(target=watch, daemon=True).start()


def _end() -> NoReturn:
    if not follows():
        output.fail(OTHER_ENDED)
        sys.stdout.flush()
    os._exit(FAILED)
