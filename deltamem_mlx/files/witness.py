"""What was at a path when it was last looked at, so that nobody's newer file is replaced."""

import os
import time
from pathlib import Path
from typing import NamedTuple


class FileChanged(OSError):
    """Another program has changed a file since it was read; it was not replaced."""


class Seen(NamedTuple):
    """Which file was at a path, and which contents."""

    device: int
    inode: int
    size: int
    modified: int


class Witness:
    """Remembers files as they were read or written, from the moment it is made.

    A file that was never looked at counts as known if nobody has changed it since then.
    """

    def __init__(self) -> None:
        self._began = time.time_ns()
        self._seen: dict[str, Seen | None] = {}

    def note(self, path: str | Path) -> None:
        """Take what is at ``path`` now, or that nothing is, for known."""
        self._seen[os.path.realpath(path)] = _look(path)

    def copy(self) -> "Witness":
        """One that knows the same."""
        new = Witness()
        new._began, new._seen = self._began, dict(self._seen)
        return new

    def learn(self, other: "Witness") -> None:
        """Know files as another one does that was a copy of this, and has read or written since."""
        self._seen |= other._seen

    def check(self, path: str | Path, target: Path | None = None) -> None:
        """Raise FileChanged if another program has changed, made or removed the file."""
        now, key = _look(path if target is None else target), os.path.realpath(path)
        if key in self._seen:
            before = self._seen[key]
            same = now == before
            what = "was removed" if now is None else "has been saved"
        else:
            same = now is None or now.modified <= self._began
            what = "has been saved"
        if not same:
            raise FileChanged(
                f"{path} {what} by another program since it was read: nothing was written. Load it "
                "again and go on from there, or save under another name."
            )


def _look(path: str | Path) -> Seen | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Seen(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
