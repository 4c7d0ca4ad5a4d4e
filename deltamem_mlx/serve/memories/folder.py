"""Memory files in one folder, by the hashes of keys or by names; or none, and nothing is kept."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from ...adapters.loading import has_fingerprint
from ...files import FileChanged, Witness, expanded, locked_folder
from ...files.places import is_name
from ...files.writing import remove_leftovers
from ...memory.file import (
    MemoryFile,
    read_memory,
    remove_undone,
    undone_file,
    write_memory,
)
from ...memory.shelf import id_of, nearly_named
from ...memory.undo import taken_back
from ...problems import shortened
from ..errors import ApiError
from ..provider import ServedPair

SUFFIX = ".safetensors"
# What else lies in the folder is not the server's: it is neither listed nor deleted.
_OURS = re.compile(rf"([0-9a-f]{{64}}){re.escape(SUFFIX)}")
_LEFTOVER = re.compile(rf"\.([0-9a-f]{{64}})-\d+-[0-9a-f]{{8}}{re.escape(SUFFIX)}")
# MLX counts in int32, and one that runs over ends the whole batch: far from that, but no less.
_MOST_TOKENS = 1 << 30


def is_id(text: str) -> bool:
    """Whether it may be the id of a memory."""
    return _OURS.fullmatch(text + SUFFIX) is not None


class MemoryFolder:
    """The files of a server's memories, and memory files that clients get and send.

    What another program does to a file since it was read or written here is noticed, and never
    undone.

    Args:
        path (Path): The folder, made if it is not there; None: nothing is kept.
        pair (ServedPair): The model; files of others are refused.

    Raises:
        FolderInUse: If another server has the folder.
        OSError: If it cannot be made.
    """

    def __init__(self, path: Path | None, pair: ServedPair):
        self._folder, self._pair = None if path is None else expanded(path), pair
        self._witness, self._lock = Witness(), ExitStack()
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock.enter_context(locked_folder(self._folder, "a server"))
            for id in {found[1] for found in self._named(_LEFTOVER)}:
                remove_leftovers(self._folder / f"{id}{SUFFIX}")

    def called(self, key: str) -> None:
        """Somebody asks for the memory of this key.

        Raises:
            ApiError: If it cannot have a file here.
        """

    def key_of(self, id: str) -> str | None:
        """The key of a memory that has a file, where that says it."""

    def meant(self, key: str) -> str:
        """Which of the others was probably meant by the key of a new memory; empty: none, or keys
        are nobody else's to know."""
        return ""

    def close(self) -> None:
        """Let other servers have it."""
        self._lock.close()

    def ids(self) -> list[str]:
        """Of all memories that have a file."""
        return sorted(found[1] for found in self._named(_OURS))

    def _named(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        for path in self._folder.iterdir() if self._folder else []:
            if (found := pattern.fullmatch(path.name)) and path.is_file():
                yield found

    def has(self, id: str) -> bool:
        """Whether there is a file."""
        return self._folder is not None and self._path(self._folder, id).exists()

    def changed(self, id: str) -> bool:
        """Whether another program has changed, made or removed the file since it was seen."""
        if self._folder is None:
            return False
        try:
            self._witness.check(self._path(self._folder, id))
        except FileChanged:
            return True
        return False

    def see(self, id: str) -> None:
        """Take the file as it is now for known."""
        if self._folder is not None:
            self._witness.note(self._path(self._folder, id))

    def read(self, id: str) -> MemoryFile | None:
        """A memory from its file; None: there is none.

        Raises:
            ApiError: If the file cannot be used.
        """
        if self._folder is None:
            return None
        self.see(id)  # first: what is written while it is read is noticed
        path = self._path(self._folder, id)
        try:
            return self._checked(read_memory(path))
        except FileNotFoundError:
            if not path.is_symlink():
                return None
            what = "Its file is a link that points nowhere."
        except (ValueError, OSError) as error:
            what = str(error).replace(str(path), "Its file")
        raise ApiError(
            409,
            f"This memory cannot be used: {what} Delete it, or begin anew with memory.reset.",
            code="memory_unusable",
        )

    def undone(self, id: str, now: MemoryFile) -> MemoryFile | None:
        """A memory as it was before turns were taken back that led to what its file holds ``now``;
        None: that is not kept."""
        return None if self._folder is None else taken_back(self._path(self._folder, id), now)

    def write(self, id: str, saved: MemoryFile, undone: MemoryFile | None = None) -> None:
        """Replace the file of a memory, whole or not at all.

        ``undone`` is kept beside it: what it was before turns were taken back.

        Raises:
            ApiError: If it cannot be written, or is not as it was when it was last seen.
        """
        if self._folder is None:
            return
        path, kept = self._path(self._folder, id), False
        try:
            if undone is not None:  # first: a kill between the two loses neither
                self._witness.check(path)
                with suppress(OSError):  # it is in RAM as well
                    write_memory(undone_file(path), undone)
                    kept = True
            write_memory(path, saved, self._witness, keep_undone=kept)
        except FileChanged:
            raise ApiError(
                409,
                "Another program changed this memory's file while the request was answered: that "
                "is kept, and nothing of the request. Send it again.",
                code="memory_changed",
            ) from None
        except (OSError, ValueError) as error:
            raise ApiError(
                500,
                f"The memory could not be saved ({_reason(error)}), and is as it was before.",
                code="not_saved",
            ) from error

    def delete(self, id: str) -> None:
        """Remove the file of a memory, if there is one.

        Raises:
            ApiError: If it cannot be removed.
        """
        if self._folder is None:
            return
        try:
            self._path(self._folder, id).unlink(missing_ok=True)
            remove_undone(self._path(self._folder, id))
        except OSError as error:
            what = f"The memory could not be deleted ({_reason(error)})."
            raise ApiError(500, what, code="not_deleted") from error
        self.see(id)

    def packed(self, saved: MemoryFile) -> bytes:
        """A memory as a client gets it: the bytes of its file."""
        with _aside() as path:
            write_memory(path, saved)
            return path.read_bytes()

    def unpacked(self, file: bytes) -> MemoryFile:
        """A memory that a client sends.

        Raises:
            ApiError: If it is no memory of this model and adapter.
        """
        with _aside() as path:
            path.write_bytes(file)
            try:
                return self._checked(read_memory(path))
            except ValueError as error:
                what = str(error).replace(str(path), "The file")
                raise ApiError(400, what, code="bad_memory_file") from None

    def _path(self, folder: Path, id: str) -> Path:
        return folder / f"{id}{SUFFIX}"

    def _checked(self, saved: MemoryFile) -> MemoryFile:
        if not has_fingerprint(self._pair.model, saved.adapter):
            raise ValueError(
                f"The memory was written under another adapter (fingerprint {saved.adapter[:12]}; "
                f"this server has {self._pair.adapter[:12]})."
            )
        shapes = {i: tuple(state.shape) for i, state in saved.states.items()}
        if shapes != self._pair.shapes or len(saved.tokens_written) != 1:
            raise ValueError("The memory is not one conversation's of this model.")
        for (count,) in (saved.tokens_written, *(turn.tokens_written for turn in saved.history)):
            if not 0 <= count <= _MOST_TOKENS:
                raise ValueError(
                    f"The memory counts {count} tokens written; expected 0 to {_MOST_TOKENS}."
                )
        return replace(saved, base_model=self._pair.described)


class NamedFolder(MemoryFolder):
    """A user's own folder of memories: each file has the name of its memory, which is its key.

    Arguments and errors as of its base.
    """

    def __init__(self, path: Path, pair: ServedPair):
        self._names: dict[str, str] = {}  # by id
        super().__init__(path, pair)

    def called(self, key: str) -> None:
        if not is_name(key):
            raise ApiError(
                400,
                f"{shortened(key)} is no name for a memory; expected letters, digits, - and _.",
                code="bad_name",
            )
        self._names[id_of(key)] = key

    def key_of(self, id: str) -> str | None:
        return self._names.get(id)

    def meant(self, key: str) -> str:
        own = id_of(key)
        return nearly_named(key, [self._names[id] for id in self.ids() if id != own])

    def ids(self) -> list[str]:
        paths = self._folder.glob(f"*{SUFFIX}") if self._folder else []
        there = {id_of(path.stem): path.stem for path in paths if is_name(path.stem)}
        self._names |= there
        return sorted(there)

    def _path(self, folder: Path, id: str) -> Path:
        if id not in self._names:
            self.ids()
        return folder / f"{self._names.get(id, id)}{SUFFIX}"


@contextmanager
def _aside() -> Iterator[Path]:
    """A path for a file that nobody keeps."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / f"memory{SUFFIX}"
    except OSError as error:
        said = f"There is no room for a temporary file ({_reason(error)}). Nothing was changed."
        raise ApiError(500, said, code="not_saved") from error


def _reason(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
    said = cause.strerror if isinstance(cause, OSError) else None
    return said or type(error).__name__
