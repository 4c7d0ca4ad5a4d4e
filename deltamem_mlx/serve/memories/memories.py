"""The memories of a server: which there are, and what is done to them beside telling them."""

from contextlib import ExitStack
from dataclasses import replace

from ...memory.contents import MemoryFile
from ...memory.shelf import id_of
from ..errors import ApiError
from .folder import is_id
from .holding import MemoriesInHand
from .memory import HeldMemory


class Memories(MemoriesInHand):
    """All memories, the least recently used of them on disk only. Arguments as of its base."""

    def look(self, key: str, *, context: bool = False) -> HeldMemory:
        """A memory as it was after its last turn, without waiting for the present one.

        With its ``context``, if that is in a file and was not asked for yet.

        Raises:
            ApiError: If there is none.
        """
        return self._found(id_of(key), key, context=context)[0]

    def find(self, name: str) -> HeldMemory:
        """The same of a memory that is named by its key, or by its id where its key is not known.

        Raises:
            ApiError: If there is none.
        """
        return self._found(*self._named(name))[0]

    def _named(self, name: str) -> tuple[str, str | None]:
        """The id of a memory of this key, or of this id; and the key, if it is one."""
        id = id_of(name)
        if is_id(name) and not self._is_there(id) and self._is_there(name):
            return name, None
        return id, name

    def _is_there(self, id: str) -> bool:
        with self._mutex:
            memory = self._all.get(id)
        in_ram = memory is not None and memory.contents.saved is not None
        return (in_ram and not self.folder.changed(id)) or self.folder.has(id)

    def _found(
        self, id: str, key: str | None, *, context: bool = False
    ) -> tuple[HeldMemory, MemoryFile]:
        with self._mutex:
            memory = self._all.get(id)
        found = None if memory is None else memory.contents
        if found is not None and found.saved is None and not self.folder.has(id):
            raise _not_found()  # at once: its first turn may be long
        here = found is not None and found.saved is not None and not self.folder.changed(id)
        unseen = context and self._contexts is not None and found is not None and not found.talk
        if found is None or not here or unseen:
            with self._loaded(id, key, context=context) as held:
                found = held.contents
        if found.saved is None:
            raise _not_found()
        return found, found.saved

    def listed(self) -> list[dict[str, object]]:
        """All of them; of those on disk only, no more than the id, and the key if it is known."""
        with self._mutex:
            known = {m.id: m.contents for m in self._all.values()}
        found = {
            id: c.stats() for id, c in known.items() if c.saved and not self.folder.changed(id)
        }
        for id in self.folder.ids():
            key = known[id].key if id in known else self.folder.key_of(id)
            unknown = dict.fromkeys(HeldMemory(id, key).stats())
            found.setdefault(id, unknown | {"object": "memory", "session": key, "id": id})
        return list(found.values())

    def delete(self, name: str) -> str:
        """Forget one, its files too; it may be named by its id, which is returned.

        Raises:
            ApiError: If there is none, or it is in use for too long.
        """
        id, key = self._named(name)
        if not self._delete(id, key):
            raise _not_found()
        return id

    def delete_all(self) -> int:
        """Forget all; returns how many there were.

        Raises:
            ApiError: If one is in use for too long; those before it are gone then.
        """
        with self._mutex:
            ids = [id for id, memory in self._all.items() if memory.contents.is_known]
        ids = list(dict.fromkeys([*ids, *self.folder.ids()]))
        count = sum(self._delete(id, None) for id in ids)
        for id in self._contexts.ids() if self._contexts is not None else ():
            self._without_context(id)  # of memories whose files were removed
        return count

    def _delete(self, id: str, key: str | None) -> bool:
        with self._held(id, key) as memory:
            on_disk = self.folder.has(id)
            removed = memory.contents.is_known and not self.folder.changed(id)
            self.folder.delete(id)
            self._without_context(id)
            memory.take(None)
            return on_disk or removed

    def rename(self, name: str, to: str) -> tuple[HeldMemory, str]:
        """Give a memory another key; it may be named by its id. Returns it, and its id before.

        Raises:
            ApiError: If there is none, something has the new key, or it cannot be saved.
        """
        id, key = self._named(name)
        new = id_of(to)
        if id == new or self._is_there(new):
            raise _exists()
        with ExitStack() as both:
            # In the order of ids, not of the request: two never wait for each other.
            memories = {
                one: both.enter_context(self._loaded(one, called, context=one == id))
                for one, called in sorted({id: key, new: to}.items())
            }
            memory, renamed = memories[id], memories[new]
            held = memory.contents
            if held.saved is None:
                raise _not_found()
            if renamed.contents.saved is not None:
                raise _exists()
            kept = self._keep(renamed, held.saved, held.talk, held.behind, held.undone)
            self.folder.delete(id)  # last: a memory is rather there twice than not at all
            self._without_context(id)
            memory.take(None)
            return kept, id

    def fork(self, key: str, to: str) -> HeldMemory:
        """Copy a memory to a key that has none; its context stays behind.

        Raises:
            ApiError: If there is nothing to copy, or something where it is to go.
        """
        _, saved = self._found(*self._named(key))
        with self.hold(to) as memory:
            if memory.contents.saved is not None:
                raise _exists()
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
            undone = held.undone or replace(held.saved, told=held.told)
            if before.is_new and not before.created:
                self.folder.delete(memory.id)
                self._without_context(memory.id)
                memory.take(None, undone=undone)
                return memory.contents
            return self._keep(memory, before, held.talk, held.behind + turns, undone)

    def redo(self, key: str) -> HeldMemory:
        """Put back all turns that were taken back from a memory since it was told something.

        Raises:
            ApiError: If there are none, or it cannot be saved.
        """
        with self._loaded(*self._named(key)) as memory:
            held = memory.contents
            if held.undone is None:
                if held.saved is None:
                    raise _not_found()
                raise ApiError(
                    409,
                    "There is nothing to put back: what was taken back is kept until the next "
                    "turn.",
                    code="nothing_undone",
                )
            behind = max(0, held.behind - held.redo_turns)
            return self._keep(memory, held.undone, held.talk, behind)

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


def _not_found() -> ApiError:
    return ApiError(404, "There is no memory of this key.", code="memory_not_found")


def _exists() -> ApiError:
    return ApiError(409, "There is a memory of that key already.", code="memory_exists")
