"""The memories of a server: which there are, who has one in hand, in RAM and on disk.

A file holds one memory; its name is a hash of the key. What a turn came to is on disk before the
client is told that it is over.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ..memory.file import MemoryFile
from ..session.conversation import Conversation
from .errors import ApiError
from .folder import MemoryFolder
from .job import TurnOutcome
from .memory import Memory


class Memories:
    """All memories, the least recently used of them on disk only.

    Without a folder they are in RAM only, and beyond the budget the least recently used is gone.

    Args:
        folder (MemoryFolder): Where their files lie.
        budget (int): Bytes in RAM; contexts are dropped first.
        wait (float): Seconds to wait for a memory that is in use.
    """

    def __init__(self, folder: MemoryFolder, budget: int, wait: float):
        self.folder, self.budget, self.wait = folder, budget, wait
        self._all: dict[str, Memory] = {}  # by id, the least recently used first
        self._mutex = threading.Lock()
        self.evicted = {"context": 0, "memory": 0}

    @contextmanager
    def hold(self, key: str, *, load: bool = True) -> Iterator[Memory]:
        """The memory of a key, for this thread alone.

        Raises:
            ApiError: If another request has it for too long, or its file cannot be used.
        """
        memory = self._pin(key)
        try:
            if not memory.lock.acquire(timeout=self.wait):
                raise ApiError(
                    409,
                    f"Another request has been using this memory for {self.wait:g} s. A memory "
                    "answers one request at a time: try again.",
                    code="memory_busy",
                    retry_after=1,
                )
            try:
                if load and memory.saved is None:
                    memory.take(self.folder.read(memory.id))
                yield memory
            finally:
                memory.lock.release()
        finally:
            self._unpin(memory)

    def commit(self, memory: Memory, outcome: TurnOutcome) -> None:
        """Keep what a turn came to, on disk first.

        Raises:
            ApiError: If it cannot be written; all is as it was before then.
        """
        self._keep(memory, outcome.saved, outcome.talk)

    def look(self, key: str) -> Memory:
        """A memory as it was after its last turn, without waiting for the present one.

        Raises:
            ApiError: If there is none.
        """
        with self._mutex:
            found = self._all.get(_id(key))
        if found is None or found.saved is None:
            with self.hold(key) as found:
                pass
        if found.saved is None:
            raise ApiError(404, "There is no memory of this key.", code="memory_not_found")
        return found

    def listed(self) -> list[dict[str, object]]:
        """All of them; of those on disk only, no more than the id and size of the file."""
        with self._mutex:
            found = {m.id: m.stats() for m in self._all.values() if m.saved is not None}
        for name in self.folder.ids():
            found.setdefault(name, {"object": "memory", "session": None, "id": name})
        return list(found.values())

    def delete(self, key: str) -> None:
        """Forget one, its file too.

        Raises:
            ApiError: If there is none, or it is in use for too long.
        """
        with self.hold(key, load=False) as memory:
            if memory.saved is None and not self.folder.has(memory.id):
                raise ApiError(404, "There is no memory of this key.", code="memory_not_found")
            self._drop(memory)

    def delete_all(self) -> int:
        """Forget all; returns how many there were.

        Raises:
            ApiError: If one is in use for too long; those before it are gone then.
        """
        with self._mutex:
            keys = [memory.key for memory in self._all.values() if memory.saved is not None]
        for key in keys:
            with self.hold(key, load=False) as memory:
                self._drop(memory)
        left = list(self.folder.ids())
        for name in left:
            self.folder.delete(name)
        return len(keys) + len(left)

    def fork(self, key: str, to: str) -> Memory:
        """Copy a memory to a key that has none; its context stays behind.

        Raises:
            ApiError: If there is nothing to copy, or something where it is to go.
        """
        saved = self.look(key).saved
        with self.hold(to) as memory:
            if memory.saved is not None:
                raise ApiError(409, "There is a memory of that key already.", code="memory_exists")
            self._keep(memory, saved)
            return memory

    def export(self, key: str) -> bytes:
        """The file of a memory.

        Raises:
            ApiError: If there is none.
        """
        return self.folder.packed(self.look(key).saved)

    def put(self, key: str, file: bytes) -> tuple[Memory, bool]:
        """Replace a memory by the one in a file; also returns whether there was none before.

        Raises:
            ApiError: If it is no memory of this model and adapter.
        """
        saved = self.folder.unpacked(file)
        with self.hold(key, load=False) as memory:
            new = memory.saved is None and not self.folder.has(memory.id)
            self._keep(memory, saved)
            return memory, new

    def totals(self) -> dict[str, int]:
        """How many are in RAM, and how large they are."""
        with self._mutex:
            found = [m for m in self._all.values() if m.saved is not None]
            return {
                "memories": len(found),
                "contexts": sum(m.talk is not None for m in found),
                "bytes": sum(m.nbytes for m in found),
            }

    def _keep(self, memory: Memory, saved: MemoryFile, talk: Conversation | None = None) -> None:
        self.folder.write(memory.id, saved)
        memory.take(saved, talk)
        self._trim()

    def _drop(self, memory: Memory) -> None:
        self.folder.delete(memory.id)
        memory.take(None)

    def _pin(self, key: str) -> Memory:
        name = _id(key)
        with self._mutex:
            memory = self._all.pop(name, None) or Memory(name, key)
            self._all[name] = memory
            memory.users += 1
            return memory

    def _unpin(self, memory: Memory) -> None:
        with self._mutex:
            memory.users -= 1
            if memory.users == 0 and memory.saved is None:
                del self._all[memory.id]

    def _trim(self) -> None:
        """Contexts go first, then whole memories, the least recently used before others."""
        with self._mutex:
            idle = [m for m in self._all.values() if not m.users]
            total = sum(m.nbytes for m in self._all.values())
            for memory in idle:
                if total <= self.budget:
                    return
                if memory.talk is not None:
                    total -= memory.context_bytes
                    memory.drop_context()
                    self.evicted["context"] += 1
            for memory in idle:
                if total <= self.budget:
                    return
                total -= memory.nbytes
                del self._all[memory.id]
                self.evicted["memory"] += 1


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
