"""Writing files so that nothing half-written is ever found under their names."""

import fcntl
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from .reading import expanded
from .witness import FileChanged, Witness

# What writers raise when a disk is full or a folder may not be written: MLX RuntimeError,
# safetensors an error of its own; and where a folder's name is not UTF-8.
_FAILURES = (OSError, RuntimeError, SafetensorError, UnicodeEncodeError)


class WriteError(OSError):
    """A file could not be written; what was there before is unchanged."""


def write_atomically(
    path: str | Path,
    write: Callable[[Path], object],
    mode: int = 0o666,
    witness: Witness | None = None,
) -> None:
    """Call ``write`` with a temporary path beside ``path``, then rename that to ``path``.

    A link is followed: what it points at is replaced. A file that is there keeps its permissions.

    Args:
        path (Path): The file to write; ``~`` is expanded, its folder made if it is missing.
        write (Callable[[Path], object]): Writes the file; the name it gets ends as ``path`` does.
        mode (int): Permissions of a new file, less the process's umask.
        witness (Witness): Whose newer file must not be replaced; default: any may.

    Raises:
        WriteError: If it cannot be written: a full disk, a write-protected file, a folder.
        FileChanged: If ``witness`` finds that another program has changed it.
    """
    path = expanded(path)
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        before = _replaceable(target)
        remove_leftovers(target)
        temporary = _beside(target)
        try:
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
            if before is not None:
                _keep_protection(temporary, before)
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            with _alone(target.parent):
                if witness is not None:
                    witness.check(path, target)
                os.replace(temporary, target)
                if witness is not None:
                    witness.note(path)
        finally:
            temporary.unlink(missing_ok=True)
    except (WriteError, FileChanged):
        raise
    except _FAILURES as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        reason = reason.strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise WriteError(f"{path} could not be written: {reason}.{_still(target)}") from error


def write_text(
    path: str | Path, text: str, mode: int = 0o666, witness: Witness | None = None
) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8. Errors as of ``write_atomically``."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"), mode, witness)


def remove_leftovers(target: Path) -> None:
    """Remove temporary files for ``target`` that killed processes have left beside it."""
    pattern = re.compile(
        rf"{re.escape(_stem(target))}-(\d+)-[0-9a-f]{{8}}{re.escape(target.suffix)}"
    )
    with suppress(OSError):
        for file in target.parent.iterdir():
            if (found := pattern.fullmatch(file.name)) and not _runs(int(found[1])):
                file.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    name = f"{_stem(target)}-{os.getpid()}-{os.urandom(4).hex()}{target.suffix}"
    return target.with_name(name)


def _stem(target: Path) -> str:
    # A name may have 255 bytes, and this one gets longer.
    return f".{target.stem.encode()[:200].decode(errors='ignore')}"


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _replaceable(target: Path) -> os.stat_result | None:
    """What is at ``target``, if that may be replaced; None: nothing."""
    try:
        found = target.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        raise WriteError(f"{target} is {kind}: nothing was written. Give the name of a file.")
    if not found.st_mode & 0o222 or not os.access(target, os.W_OK):
        raise WriteError(
            f"{target} is write-protected: nothing was written. Make it writable (chmod u+w), or "
            "give another name."
        )
    return found


def _keep_protection(temporary: Path, before: os.stat_result) -> None:
    if (before.st_uid, before.st_gid) != (os.getuid(), os.getgid()):
        with suppress(OSError):  # only root may give files away
            os.chown(temporary, before.st_uid, before.st_gid)
    os.chmod(temporary, stat.S_IMODE(before.st_mode))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """No other process of this package is within this context for ``folder``.

    A lock on the folder itself leaves no file behind. Where a file system has no locks, the
    check and the rename inside are still next to each other.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _still(target: Path) -> str:
    return " What was there before is unchanged." if target.exists() else ""
