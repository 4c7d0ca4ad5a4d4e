"""The memories of a server: which there are, who has one in hand, in RAM and on disk.

A file holds one memory; its name is a hash of the key. What a turn came to is on disk before the
client is told that it is over.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from ...memory.file import MemoryFile
from ...session.conversation import Conversation
from ..errors import ApiError
from .folder import MemoryFolder, is_id
from .memory import HeldMemory, Memory
from .outcome import TurnOutcome


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

    def close(self) -> None:
        """Let other servers have the folder."""
        self.folder.close()

    @contextmanager
    def hold(self, key: str, *, load: bool = True) -> Iterator[Memory]:
        """The memory of a key, for this thread alone.

        Args:
            key (str): The key.
            load (bool): Read its file, where that is not what is in RAM. Not for who replaces it.

        Raises:
            ApiError: If another request has it for too long, or its file cannot be used.
        """
        with self._loaded(_id(key), key, load=load) as memory:
            yield memory

    @contextmanager
    def _loaded(self, id: str, key: str | None, *, load: bool = True) -> Iterator[Memory]:
        with self._held(id, key) as memory:
            if not load:
                self.folder.see(memory.id)
            elif memory.contents.saved is None or self.folder.changed(memory.id):
                before = memory.contents
                memory.take(None)  # and so it stays if the file cannot be used
                memory.take(self.folder.read(memory.id))
                memory.recall(before)
            yield memory

    @contextmanager
    def hold_anew(self, key: str, source: HeldMemory) -> Iterator[Memory]:
        """A memory of a new key that goes on from what another holds.

        Unless a turn of it is kept, there is none afterwards.
        """
        with self._held(_id(key), key) as memory:
            self.folder.see(memory.id)
            memory.take(source.saved, source.talk, source.behind)
            began = memory.contents
            try:
                yield memory
            finally:
                if memory.contents is began:
                    memory.take(None)

    @contextmanager
    def _held(self, id: str, key: str | None) -> Iterator[Memory]:
        memory = self._pin(id, key)
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
                yield memory
            finally:
                memory.lock.release()
        finally:
            self._unpin(memory)

    def commit(self, memory: Memory, outcome: TurnOutcome) -> None:
        """Keep what a turn came to, on disk first.

        Raises:
            ApiError: If it cannot be written, or is not finite; all is as it was before then.
        """
        if not all(np.isfinite(state).all() for state in outcome.saved.states.values()):
            raise ApiError(
                409,
                "The numbers in this memory became too large in this turn, of which nothing is "
                "kept. Begin anew with memory.reset.",
                code="memory_overflow",
            )
        self._keep(memory, outcome.saved, outcome.talk)

    def look(self, key: str) -> HeldMemory:
        """A memory as it was after its last turn, without waiting for the present one.

        Raises:
            ApiError: If there is none.
        """
        return self._found(_id(key), key)[0]

    def find(self, name: str) -> HeldMemory:
        """The same of a memory that is named by its key, or by its id where its key is not known.

        Raises:
            ApiError: If there is none.
        """
        return self._found(*self._named(name))[0]

    def _named(self, name: str) -> tuple[str, str | None]:
        """The id of a memory of this key, or of this id; and the key, if it is one."""
        id = _id(name)
        if is_id(name) and not self._is_there(id) and self._is_there(name):
            return name, None
        return id, name

    def _is_there(self, id: str) -> bool:
        with self._mutex:
            memory = self._all.get(id)
        return (memory is not None and memory.contents.saved is not None) or self.folder.has(id)

    def _found(self, id: str, key: str | None) -> tuple[HeldMemory, MemoryFile]:
        with self._mutex:
            memory = self._all.get(id)
        found = None if memory is None else memory.contents
        if found is None or found.saved is None or self.folder.changed(found.id):
            with self._loaded(id, key) as held:
                found = held.contents
        if found.saved is None:
            raise _not_found()
        return found, found.saved

    def listed(self) -> list[dict[str, object]]:
        """All of them; of those on disk only, no more than the id."""
        with self._mutex:
            known = {m.id: m.contents for m in self._all.values()}
        found = {
            id: c.stats() for id, c in known.items() if c.saved and not self.folder.changed(id)
        }
        for id in self.folder.ids():
            key = known[id].key if id in known else None
            found.setdefault(id, {"object": "memory", "session": key, "id": id})
        return list(found.values())

    def delete(self, key: str) -> None:
        """Forget one, its file too; it may be named by its id.

        Raises:
            ApiError: If there is none, or it is in use for too long.
        """
        if not self._delete(*self._named(key)):
            raise _not_found()

    def delete_all(self) -> int:
        """Forget all; returns how many there were.

        Raises:
            ApiError: If one is in use for too long; those before it are gone then.
        """
        with self._mutex:
            ids = [id for id, memory in self._all.items() if memory.contents.saved]
        return sum(self._delete(id, None) for id in dict.fromkeys([*ids, *self.folder.ids()]))

    def _delete(self, id: str, key: str | None) -> bool:
        with self._held(id, key) as memory:
            on_disk = self.folder.has(id)
            removed = memory.contents.saved is not None and not self.folder.changed(id)
            self.folder.delete(id)
            memory.take(None)
            return on_disk or removed

    def fork(self, key: str, to: str) -> HeldMemory:
        """Copy a memory to a key that has none; its context stays behind.

        Raises:
            ApiError: If there is nothing to copy, or something where it is to go.
        """
        _, saved = self._found(*self._named(key))
        with self.hold(to) as memory:
            if memory.contents.saved is not None:
                raise ApiError(409, "There is a memory of that key already.", code="memory_exists")
            return self._keep(memory, saved)

    def undo(self, key: str, turns: int) -> HeldMemory:
        """Take back the last turns of a memory; of one that was begun by them nothing stays.

        Raises:
            ApiError: If there is none, so many turns are not kept, or it cannot be saved.
        """
        with self._loaded(*self._named(key)) as memory:
            held = memory.contents
            if held.saved is None:
                raise _not_found()
            if turns > len(held.saved.history):
                what = held.saved.cannot_go_back(turns)
                raise ApiError(409, what, code="not_kept", param="turns")
            try:
                before = replace(held.saved, told=held.told).before(turns)
            except ValueError as error:
                what = f"This memory cannot be used: {error}."
                raise ApiError(409, what, code="memory_unusable") from None
            if before.is_new and not before.created:
                self.folder.delete(memory.id)
                memory.take(None)
                return memory.contents
            return self._keep(memory, before, held.talk, held.behind + turns)

    def export(self, key: str) -> bytes:
        """The file of a memory.

        Raises:
            ApiError: If there is none.
        """
        return self.folder.packed(self._found(*self._named(key))[1])

    def put(self, key: str, file: bytes) -> tuple[HeldMemory, bool]:
        """Replace a memory by the one in a file; also returns whether there was none before.

        Raises:
            ApiError: If it is no memory of this model and adapter.
        """
        saved = self.folder.unpacked(file)
        with self.hold(key, load=False) as memory:
            new = memory.contents.saved is None and not self.folder.has(memory.id)
            return self._keep(memory, saved), new

    def totals(self) -> dict[str, int]:
        """How many are in RAM, and how large they are."""
        with self._mutex:
            found = [m.contents for m in self._all.values() if m.contents.saved]
        return {
            "memories": len(found),
            "contexts": sum(contents.talk is not None for contents in found),
            "bytes": sum(contents.nbytes for contents in found),
        }

    def _keep(
        self,
        memory: Memory,
        saved: MemoryFile,
        talk: Conversation | None = None,
        behind: int = 0,
    ) -> HeldMemory:
        self.folder.write(memory.id, saved)
        memory.take(saved, talk, behind)
        kept = memory.contents
        self._trim()
        return kept

    def _pin(self, id: str, key: str | None) -> Memory:
        with self._mutex:
            memory = self._all.pop(id, None) or Memory(id, key)
            memory.is_called(key)
            self._all[id] = memory
            memory.users += 1
            return memory

    def _unpin(self, memory: Memory) -> None:
        with self._mutex:
            memory.users -= 1
            if memory.users == 0 and memory.contents.saved is None:
                del self._all[memory.id]

    def _trim(self) -> None:
        """Contexts go first, then whole memories, the least recently used before others."""
        with self._mutex:
            idle = [m for m in self._all.values() if not m.users]
            total = sum(m.contents.nbytes for m in self._all.values())
            for memory in idle:
                if total <= self.budget:
                    return
                if memory.contents.talk is not None:
                    total -= memory.contents.context_bytes
                    memory.drop_context()
                    self.evicted["context"] += 1
            for memory in idle:
                if total <= self.budget:
                    return
                total -= memory.contents.nbytes
                del self._all[memory.id]
                self.evicted["memory"] += 1


def _not_found() -> ApiError:
    return ApiError(404, "There is no memory of this key.", code="memory_not_found")


def _id(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
