"""Writing files so that nothing half-written is ever found under their names."""

import os
from collections.abc import Callable
from pathlib import Path


def write_atomically(path: str | Path, write: Callable[[Path], None], mode: int = 0o666) -> None:
    """Call ``write`` with a temporary path beside ``path``, then rename that to ``path``.

    Args:
        path (Path): The file to write; its folder is made if it is missing.
        write (Callable[[Path], None]): Writes the file; the name it gets ends as ``path`` does.
        mode (int): Permissions of the file, less the process's umask.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{os.urandom(4).hex()}{path.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str, mode: int = 0o666) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"), mode)
