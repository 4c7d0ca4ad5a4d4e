"""Conversations of OpenAI's API: what is kept of one in RAM, beside the memory of its name."""

import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ...memory.shelf import id_of
from ..errors import ApiError
from .items import Item

_MOST, _MOST_ITEMS, _MOST_BYTES = 4096, 4096, 64 << 20


@dataclass(frozen=True)
class KeptConversation:
    """What is kept of a conversation beside its memory.

    Attributes:
        id (str): The key of the memory.
        created (int): When it began, in seconds.
        metadata (dict): The client's own notes.
        items (tuple[Item, ...]): What was said, the newest of it.
        pending (tuple[Item, ...]): The last of these: told to the memory with the next response.
    """

    id: str
    created: int = field(default_factory=lambda: int(time.time()))
    metadata: dict[str, object] = field(default_factory=dict)
    items: tuple[Item, ...] = ()
    pending: tuple[Item, ...] = ()

    def as_json(self) -> dict[str, object]:
        """As clients read it."""
        return {
            "id": self.id,
            "object": "conversation",
            "created_at": self.created,
            "metadata": self.metadata,
        }

    def find(self, item: str) -> Item:
        """One of its items.

        Raises:
            ApiError: If there is none of this id.
        """
        for found in self.items:
            if found["id"] == item:
                return found
        raise ApiError(404, "The conversation has no item of this id.", code="item_not_found")

    def with_items(self, items: Sequence[Item]) -> "KeptConversation":
        """The same, with items that its memory has not been told."""
        return replace(self, items=(*self.items, *items), pending=(*self.pending, *items))

    def without(self, item: str) -> "KeptConversation":
        """The same without an item that its memory has not been told.

        Raises:
            ApiError: If it has been, or there is none.
        """
        gone = self.find(item)
        if gone not in self.pending:
            raise ApiError(
                409,
                "The memory was told this item, which cannot be taken out of it alone. Take back "
                "its last turns, or delete the conversation.",
                code="item_told",
            )
        rest = tuple(one for one in self.items if one is not gone)
        return replace(self, items=rest, pending=tuple(o for o in self.pending if o is not gone))

    def told(self, pending: Sequence[Item], said: Sequence[Item]) -> "KeptConversation":
        """The same after a response to what was ``pending`` and to more, which ``said`` has."""
        ids = {item["id"] for item in pending}
        left = tuple(item for item in self.pending if item["id"] not in ids)
        before = self.items[: len(self.items) - len(left)]
        return replace(self, items=(*before, *said, *left)[-_MOST_ITEMS:], pending=left)


class KeptConversations:
    """The conversations that were used last, by id; of older ones their memories are left.

    Args:
        most_bytes (int): Bytes that their items may take together.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES):
        self._most_bytes, self._size = most_bytes, 0
        self._kept: OrderedDict[str, tuple[KeptConversation, int]] = OrderedDict()
        self._mutex = threading.Lock()

    def find(self, id: str) -> KeptConversation | None:
        """What is kept of one; None: nothing."""
        with self._mutex:
            found = self._kept.get(id)
        return None if found is None else found[0]

    def change(
        self, id: str, change: Callable[[KeptConversation], KeptConversation]
    ) -> KeptConversation:
        """Replace what is kept of one by what ``change`` makes of it; nothing kept is a new one."""
        with self._mutex:
            before, size = self._kept.get(id, (KeptConversation(id), 0))
            changed = change(before)
            new = len(json.dumps(changed.items))
            self._kept[id], self._size = (changed, new), self._size - size + new
            self._kept.move_to_end(id)
            while len(self._kept) > _MOST or self._size > self._most_bytes:
                self._size -= self._kept.popitem(last=False)[1][1]
            return changed

    def forget(self, memory: str) -> None:
        """Let go of that of the memory of this id."""
        with self._mutex:
            self._size -= self._kept.pop(self._key_of(memory), (None, 0))[1]

    def rename(self, memory: str, to: str) -> None:
        """The memory of this id has the key ``to`` now."""
        with self._mutex:
            found, size = self._kept.pop(self._key_of(memory), (None, 0))
            if found is not None:
                self._size -= self._kept.pop(to, (None, 0))[1]
                self._kept[to] = (replace(found, id=to), size)

    def _key_of(self, memory: str) -> str:
        """Of the conversation of the memory of this id; empty: none is kept."""
        return next((key for key in self._kept if id_of(key) == memory), "")

    def clear(self) -> None:
        """Let go of all."""
        with self._mutex:
            self._kept.clear()
            self._size = 0
