"""Who has which memory in hand, what of it is in RAM, and when it is written.

A file holds one memory; its name is a hash of the key, or the key. What a turn came to is on disk
before the client is told that it is over.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...memory.contents import MemoryFile
from ...memory.shelf import id_of
from ...session.conversation import Conversation
from ..errors import ApiError
from .contexts import ContextFolder
from .folder import MemoryFolder
from .memory import HeldMemory, Memory
from .outcome import TurnOutcome


class MemoriesInHand:
    """All memories, the least recently used of them on disk only.

    Without a folder they are in RAM only, and beyond the budget the least recently used is gone.

    Args:
        folder (MemoryFolder): Where their files lie.
        budget (int): Bytes in RAM; contexts are dropped first.
        wait (float): Seconds to wait for a memory that is in use.
        contexts (ContextFolder): Where their contexts lie; None: those are in RAM only.
    """

    def __init__(
        self,
        folder: MemoryFolder,
        budget: int,
        wait: float,
        contexts: ContextFolder | None = None,
    ):
        self.folder, self.budget, self.wait = folder, budget, wait
        self._contexts = contexts
        self._all: dict[str, Memory] = {}  # by id, the least recently used first
        self._mutex = threading.Lock()
        self.evicted = {"context": 0, "memory": 0}
        if contexts is not None:
            for id in contexts.ids() - set(folder.ids()):  # of memories that were removed
                contexts.forget(id)

    def close(self) -> None:
        """Let other servers have the folders."""
        if self._contexts is not None:
            self._contexts.close()
        self.folder.close()

    @contextmanager
    def hold(self, key: str, *, load: bool = True, context: bool = False) -> Iterator[Memory]:
        """The memory of a key, for this thread alone.

        Args:
            key (str): The key.
            load (bool): Read its file, where that is not what is in RAM. Not for who replaces it.
            context (bool): Read its context as well, where that is not in RAM.

        Raises:
            ApiError: If another request has it for too long, or its file cannot be used.
        """
        with self._loaded(id_of(key), key, load=load, context=context) as memory:
            yield memory

    @contextmanager
    def _loaded(
        self, id: str, key: str | None, *, load: bool = True, context: bool = False
    ) -> Iterator[Memory]:
        with self._held(id, key) as memory:
            if not load:
                if self.folder.changed(memory.id):
                    memory.take(None)  # older than the file, which stays unless it is replaced
                self.folder.see(memory.id)
            elif not memory.contents.is_known or self.folder.changed(memory.id):
                before = memory.contents
                memory.take(None)  # and so it stays if the file cannot be used
                saved = self.folder.read(memory.id)
                memory.take(saved, undone=saved and self.folder.undone(memory.id, saved))
                memory.recall(before)
                if saved is None:
                    self._without_context(memory.id)
            if load and context:
                self._see_again(memory)
            yield memory

    def _see_again(self, memory: Memory) -> None:
        """Have the context of a memory in RAM, if it is in a file."""
        held = memory.contents
        if self._contexts is None or held.saved is None or held.talk is not None:
            return
        talk = self._contexts.read(memory.id, held.saved)
        if talk is not None:
            memory.see(talk)
            self._trim()

    def _without_context(self, id: str) -> None:
        if self._contexts is not None:
            self._contexts.forget(id)

    @contextmanager
    def hold_anew(self, key: str, source: HeldMemory) -> Iterator[Memory]:
        """A memory of a new key that goes on from what another holds.

        Unless a turn of it is kept, there is none afterwards.
        """
        with self._held(id_of(key), key) as memory:
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
        if key is not None:
            self.folder.called(key)
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

    def totals(self) -> dict[str, int]:
        """How many are in RAM, and how large they are."""
        with self._mutex:
            found = [m.contents for m in self._all.values() if m.contents.saved]
        return {
            "memories": len(found),
            "contexts": sum(contents.talk is not None for contents in found),
            "bytes": sum(contents.nbytes for contents in found),
        }

    def contexts_on_disk(self) -> dict[str, int]:
        """How many are in files, how large those are, how many were gone on from."""
        return {} if self._contexts is None else self._contexts.totals()

    def _keep(
        self,
        memory: Memory,
        saved: MemoryFile,
        talk: Conversation | None = None,
        behind: int = 0,
        undone: MemoryFile | None = None,
    ) -> HeldMemory:
        self.folder.write(memory.id, saved, undone)
        memory.take(saved, talk, behind, undone)
        kept = memory.contents
        if self._contexts is not None and talk is not None and not behind:
            self._contexts.keep(memory.id, saved, talk)
        else:
            self._without_context(memory.id)
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
            if memory.users == 0 and not memory.contents.is_known:
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
