"""A folder for one process at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .reading import expanded

LOCK = ".lock"


class FolderInUse(OSError):
    """Another process works in a folder."""


@contextmanager
def locked_folder(folder: str | Path, purpose: str) -> Iterator[Path]:
    """Within this context no other process has ``folder``, which is made if it is missing.

    The system releases the lock of a process that was killed.

    Args:
        folder (Path): The folder; a file ``.lock`` in it carries the lock.
        purpose (str): What the other process would be, for the message: "train", "a server".

    Raises:
        FolderInUse: If another process has it.
    """
    from filelock import FileLock, Timeout  # here: `--help` does not wait for it

    folder = expanded(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK, mode=0o600)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"{folder} is in use by {purpose}{_process(folder / LOCK)}. Wait until that has ended, "
            "or give another folder."
        ) from None
    try:
        with suppress(OSError):  # a full disk: others then read no number of this process
            (folder / LOCK).write_text(str(os.getpid()))
        yield folder
    finally:
        lock.release()


def _process(lock: Path) -> str:
    with suppress(OSError, ValueError):
        return f" (process {int(lock.read_text()[:20])})"
    return ""
