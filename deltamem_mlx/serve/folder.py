"""Memory files in one folder, by the hash of a key; or no folder, and nothing is kept."""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ..memory.file import MemoryFile, read_memory, write_memory
from .errors import ApiError
from .provider import ServedPair

SUFFIX = ".safetensors"


class MemoryFolder:
    """The files of a server's memories, and memory files that clients get and send.

    Args:
        path (Path): The folder, made if it is not there; None: nothing is kept.
        pair (ServedPair): The model; files of others are refused.
    """

    def __init__(self, path: Path | None, pair: ServedPair):
        self._folder, self._pair = path, pair
        if path is not None:
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for left in path.glob(f".*{SUFFIX}"):  # by a process that was killed while writing
                left.unlink(missing_ok=True)

    def ids(self) -> Iterator[str]:
        """Of all memories that have a file."""
        for path in sorted(self._folder.glob(f"*{SUFFIX}")) if self._folder else []:
            if not path.name.startswith("."):
                yield path.stem

    def has(self, id: str) -> bool:
        """Whether there is a file."""
        return self._folder is not None and self._path(id).exists()

    def read(self, id: str) -> MemoryFile | None:
        """A memory from its file; None: there is none.

        Raises:
            ApiError: If the file cannot be used.
        """
        if not self.has(id):
            return None
        path = self._path(id)
        try:
            return self._checked(read_memory(path))
        except (ValueError, OSError) as error:
            what = str(error).replace(str(path), "Its file")
            raise ApiError(
                409,
                f"This memory cannot be used: {what} Delete it, or begin anew with memory.reset.",
                code="memory_unusable",
            ) from None

    def write(self, id: str, saved: MemoryFile) -> None:
        """Replace the file of a memory, whole or not at all.

        Raises:
            ApiError: If it cannot be written.
        """
        if self._folder is None:
            return
        try:
            write_memory(self._path(id), saved)
        except (OSError, ValueError) as error:
            raise ApiError(
                500,
                f"The memory could not be saved ({type(error).__name__}), and is as it was before.",
                code="not_saved",
            ) from error

    def delete(self, id: str) -> None:
        """Remove the file of a memory, if there is one."""
        if self._folder is not None:
            self._path(id).unlink(missing_ok=True)

    def packed(self, saved: MemoryFile) -> bytes:
        """A memory as a client gets it: the bytes of its file."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"memory{SUFFIX}"
            write_memory(path, saved)
            return path.read_bytes()

    def unpacked(self, file: bytes) -> MemoryFile:
        """A memory that a client sends.

        Raises:
            ApiError: If it is no memory of this model and adapter.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"memory{SUFFIX}"
            path.write_bytes(file)
            try:
                return self._checked(read_memory(path))
            except ValueError as error:
                what = str(error).replace(str(path), "The file")
                raise ApiError(400, what, code="bad_memory_file") from None

    def _path(self, id: str) -> Path:
        return self._folder / f"{id}{SUFFIX}"

    def _checked(self, saved: MemoryFile) -> MemoryFile:
        if saved.adapter != self._pair.adapter:
            raise ValueError(
                f"The memory was written under another adapter (fingerprint {saved.adapter[:12]}; "
                f"this server has {self._pair.adapter[:12]})."
            )
        shapes = {i: tuple(state.shape) for i, state in saved.states.items()}
        written = saved.tokens_written
        if shapes != self._pair.shapes or len(written) != 1 or not isinstance(written[0], int):
            raise ValueError("The memory is not one conversation's of this model.")
        return replace(saved, base_model=self._pair.described)
