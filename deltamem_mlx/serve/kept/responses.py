"""Responses that can be asked for again, in RAM: the only place where a server keeps texts."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NoReturn

from ...memory.contents import MemoryFile
from ...memory.shelf import id_of
from ..errors import ApiError
from .items import Item

_MOST, _MOST_BYTES = 4096, 64 << 20


@dataclass(frozen=True)
class KeptResponse:
    """A response that was given.

    Attributes:
        response (dict): As it was sent.
        items (list[Item]): What it answers.
        key (str): Of the memory that it was said to; None: to none.
        point (MemoryFile): What that held then, where the memory has a name and goes on.
    """

    response: dict[str, object]
    items: list[Item]
    key: str | None
    point: MemoryFile | None = None

    def is_of(self, memory: str) -> bool:
        """Whether it was said to the memory of this id."""
        return self.key is not None and id_of(self.key) == memory

    @property
    def nbytes(self) -> int:
        """Bytes in RAM, about."""
        texts = len(json.dumps([self.response, self.items]))
        states = self.point.states.values() if self.point else ()
        return texts + sum(state.nbytes for state in states)


class KeptResponses:
    """The newest responses, by id; the oldest are let go.

    Args:
        most (int): How many are kept.
        most_bytes (int): Bytes that they may take together.
    """

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES):
        self._most, self._most_bytes = most, most_bytes
        self._kept: OrderedDict[str, tuple[KeptResponse, int]] = OrderedDict()
        self._size, self._mutex = 0, threading.Lock()

    def add(self, id: str, kept: KeptResponse) -> None:
        """Keep one."""
        size = kept.nbytes
        with self._mutex:
            self._kept[id] = (kept, size)
            self._size += size
            while len(self._kept) > self._most or self._size > self._most_bytes:
                self._size -= self._kept.popitem(last=False)[1][1]

    def find(self, id: str) -> KeptResponse | None:
        """The response of this id; None: there is none any more."""
        with self._mutex:
            found = self._kept.get(id)
        return None if found is None else found[0]

    def get(self, id: str) -> KeptResponse:
        """The response of this id.

        Raises:
            ApiError: If there is none any more.
        """
        return self.find(id) or no_response()

    def remove(self, id: str) -> bool:
        """Let go of one; returns whether it was there."""
        return self._drop(lambda name, _: name == id) > 0

    def forget(self, memory: str) -> None:
        """Let go of what was said to the memory of this id."""
        self._drop(lambda _, kept: kept.is_of(memory))

    def rename(self, memory: str, to: str) -> None:
        """The memory of this id has the key ``to`` now."""
        with self._mutex:
            for id, (kept, size) in self._kept.items():
                if kept.is_of(memory):
                    self._kept[id] = (replace(kept, key=to), size)

    def clear(self) -> None:
        """Let go of all."""
        self._drop(lambda *_: True)

    def _drop(self, gone: Callable[[str, KeptResponse], bool]) -> int:
        with self._mutex:
            ids = [id for id, (kept, _) in self._kept.items() if gone(id, kept)]
            for id in ids:
                self._size -= self._kept.pop(id)[1]
            return len(ids)


def no_response() -> NoReturn:
    """Raises ApiError: there is no such response."""
    raise ApiError(
        404,
        "There is no response of this id. Their texts are kept in RAM, the newest only, and "
        "nothing of those with store: false.",
        code="response_not_found",
    )
