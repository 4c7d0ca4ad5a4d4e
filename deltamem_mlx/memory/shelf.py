"""A folder of memory files, by their names: the user's own, or a server's."""

import hashlib
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path

from ..files import checked_file, expanded, write_atomically
from ..files.locks import LOCK
from ..files.places import MEMORY_SUFFIX, NAME_RULE, is_name, is_own_folder, memories_folder
from ..problems import first_few, shortened
from .file import MOST_BYTES, MemoryFile, read_memory, remove_undone, undone_file

# A server names its files by the hash of a memory's key.
_HASH = re.compile(r"[0-9a-f]{64}")
_CLOSE = 0.75  # of 1: one letter more, fewer or changed, or two in each other's place


@dataclass(frozen=True)
class ShelvedMemory:
    """A memory in a folder.

    Args:
        name (str): Its name; of a server's memory the hash of its key.
        path (Path): Its file.
        bytes (int): Of the file.
        used (datetime): When the file was last written, UTC.
        file (MemoryFile): What is in it; None: it cannot be read.
        problem (str): Why not.
    """

    name: str
    path: Path
    bytes: int
    used: datetime
    file: MemoryFile | None
    problem: str = ""


class MemoryShelf:
    """A folder of memory files.

    Args:
        folder (Path): The folder, a server's ``--memory-dir`` for instance. Default: the user's
          own. It need not be there. Where a server keeps them, names are keys, and files have
          their hashes.
    """

    def __init__(self, folder: str | Path | None = None):
        self.folder = memories_folder() if folder is None else expanded(folder)

    def names(self) -> list[str]:
        """Of all memories, in order."""
        if self.folder.is_file():
            raise NotADirectoryError(
                f"{str(self.folder)!r} is a file; expected a folder of memories."
            )
        with suppress(FileNotFoundError):
            return sorted(
                path.stem
                for path in self.folder.iterdir()
                if path.suffix == MEMORY_SUFFIX and not path.name.startswith(".")
            )
        return []

    def hashed(self) -> list[str]:
        """Those of them that are hashes of keys, as a server names its files."""
        return [name for name in self.names() if _HASH.fullmatch(name)]

    def named(self) -> list[str]:
        """The others."""
        return [name for name in self.names() if not _HASH.fullmatch(name)]

    @property
    def goes_by_keys(self) -> bool:
        """Whether what is new here is named by the hash of its key: in the folder of a server."""
        if is_own_folder(self.folder):
            return False
        began = (self.folder / LOCK).exists() and not self.named()
        return began or bool(self.hashed())

    def all(self) -> list[ShelvedMemory]:
        """All memories, the last used first. Those that cannot be read are among them.

        Raises:
            OSError: If the folder cannot be read.
        """
        found = [_look(name, self._file(name)) for name in self.names()]
        return sorted(found, key=lambda memory: memory.used, reverse=True)

    def get(self, name: str) -> ShelvedMemory:
        """A memory by its name, a server's by its key, its hash, or the beginning of that; one that
        lies elsewhere by its file.

        Raises:
            FileNotFoundError: If there is none; what is close is named.
            ValueError: If it cannot be read.
        """
        found = self.look(name)
        if found.file is None:
            raise ValueError(found.problem)
        return found

    def look(self, name: str) -> ShelvedMemory:
        """As ``get``, a memory that cannot be read as well.

        Raises:
            FileNotFoundError: If there is none; what is close is named.
        """
        path = self.path(name)
        keyed = path.stem == id_of(name)  # a server's, called as its users call it
        return _look(path.stem if path.parent == self.folder and not keyed else name, path)

    def path(self, name: str) -> Path:
        """The file of a memory, named as for ``get``.

        Raises:
            FileNotFoundError: If there is none; what is close is named.
        """
        elsewhere = expanded(name)
        if elsewhere.suffix.lower() == MEMORY_SUFFIX and id_of(name) not in self.names():
            if not elsewhere.is_file():
                raise FileNotFoundError(f"No memory file {str(elsewhere)!r}.")
            return elsewhere
        return self._file(self._known(name))

    def rename(self, name: str, to: str) -> Path:
        """Give a memory another name; returns its file.

        Raises:
            FileNotFoundError, FileExistsError: If there is none, or one of the new name.
            ValueError: If the new one is no name.
        """
        old = self._file(self._known(name))
        if is_name(to) and _is_other_case(old, self._file(to)):
            new = self._file(to)
            os.rename(old, new)
        else:
            new = self._free(to)
            self._move(old, new)
        with suppress(OSError):  # what was taken back from it goes with it
            os.rename(undone_file(old), undone_file(new))
        return new

    def _move(self, old: Path, new: Path) -> None:
        """Rename a file to a name that is free; raises FileExistsError if it no longer is."""
        try:
            os.link(old, new)  # unlike a rename, this replaces nothing
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            os.rename(old, new)
        else:
            old.unlink()

    def copy(self, name: str, to: str) -> Path:
        """Copy a memory to a new name; returns the copy's file. Errors as of ``rename``."""
        return self._take(self.path(name), to)

    def remove(self, name: str) -> None:
        """Delete a memory's file, and what was taken back from it.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = self.path(name)
        remove_undone(path)
        path.unlink()

    def export(self, name: str, path: str | Path, *, overwrite: bool = False) -> Path:
        """Copy a memory to a file outside; returns that.

        Args:
            name (str): Which.
            path (Path): A file ending in ``.safetensors``, or a folder that is there.
            overwrite (bool): Replace a file that is there.

        Raises:
            FileNotFoundError, FileExistsError: If there is no such memory, or a file already.
            ValueError: If the file's name ends otherwise.
        """
        source, target = self.path(name), expanded(path)
        if target.is_dir():
            target = target / source.name
        if target.suffix.lower() != MEMORY_SUFFIX:
            raise ValueError(
                f"{target} does not end in {MEMORY_SUFFIX}, and is no folder. Give a memory file's "
                "name."
            )
        if target.exists() and not overwrite:
            raise FileExistsError(f"{target} is there already, and was left as it is.")
        write_atomically(target, lambda part: shutil.copyfile(source, part), 0o600)
        return target

    def take_in(self, path: str | Path, name: str | None = None) -> Path:
        """Copy a memory file into the folder; returns the copy's file.

        Args:
            path (Path): The file, which is read and checked.
            name (str): What it is to be called. Default: as the file.

        Raises:
            FileNotFoundError, FileExistsError: If there is no such file, or that name is taken.
            ValueError: If it is no memory file, or that is no name.
        """
        path = checked_file(path, MOST_BYTES, "memory file")
        read_memory(path)
        return self._take(path, path.stem if name is None else name)

    def _take(self, source: Path, name: str) -> Path:
        target = self._free(name)
        write_atomically(target, lambda part: shutil.copyfile(source, part), 0o600)
        return target

    def _free(self, name: str) -> Path:
        if self.goes_by_keys:
            path = self._file(id_of(name))
        elif is_name(name):
            path = self._file(name)
        else:
            raise ValueError(f"{shortened(name)} is no name for a memory; expected {NAME_RULE}.")
        if path.exists():
            raise FileExistsError(
                f"There is a memory {name!r} already, and it was left as it is. Give another name."
            )
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return path

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}{MEMORY_SUFFIX}"

    def _known(self, name: str) -> str:
        """The stem of a memory's file.

        Raises FileNotFoundError if there is none, or a hash is cut so short that there are several.
        """
        names = self.names()
        begun = [n for n in names if _HASH.fullmatch(n) and len(name) > 5 and n.startswith(name)]
        found = next((n for n in (name, id_of(name)) if n in names), None)
        if found is None and len(begun) == 1:
            found = begun[0]
        found = found or self._opened_by(name, names)
        if found is not None:
            return found
        there = self.like(name) or "There is none yet."
        raise FileNotFoundError(f"No memory {shortened(name)} in {self.folder}. {there}")

    def _opened_by(self, name: str, names: Sequence[str]) -> str | None:
        """The one of these whose file a name opens on a disk to which Anna and anna are one."""
        path = self._file(name)
        if is_name(name) and path.is_file():
            for other in names:
                with suppress(OSError):  # a link that points nowhere
                    if path.samefile(self._file(other)):
                        return other
        return None

    def like(self, name: str) -> str:
        """Which memories there are that may have been meant, in a sentence; empty: there is none.

        Args:
            name (str): What was typed.
        """
        names = self.names()
        if close := get_close_matches(name, names):
            return f"Did you mean {' or '.join(close)}?"
        return f"There is: {', '.join(first_few(names, 8))}." if names else ""


def nearly_named(name: str, names: Sequence[str]) -> str:
    """The one of these that was probably meant by a name that is none of them; empty: none is so
    close. Who numbers memories has no slip in mind: work2 beside work.
    """
    if same := [other for other in names if other.casefold() == name.casefold()]:
        return same[0]  # where the disk takes them for two
    close = get_close_matches(name, names, 1, _CLOSE)
    return close[0] if close and _letters(close[0]) != _letters(name) else ""


def _letters(name: str) -> str:
    return "".join(letter for letter in name.casefold() if not letter.isdigit()).rstrip("-_ ")


def _is_other_case(old: Path, new: Path) -> bool:
    """Whether names differ in capitals alone on a disk to which they are one, as on most Macs."""
    if old.name == new.name or old.name.casefold() != new.name.casefold():
        return False
    return new.exists() and old.samefile(new)


def _look(name: str, path: Path) -> ShelvedMemory:
    file, problem, size, used = None, "", 0, datetime.fromtimestamp(0, UTC)
    try:
        found = path.stat()
        size, used = found.st_size, datetime.fromtimestamp(found.st_mtime, UTC)
        file = read_memory(path)
    except (OSError, ValueError) as error:
        problem = str(error)
    return ShelvedMemory(name, path, size, used, file, problem)


def id_of(key: str) -> str:
    """The id of a server's memory of this key: SHA-256, in hex."""
    return hashlib.sha256(key.encode()).hexdigest()
