"""Where a response goes on from: a memory as it was after another, or as it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from ...memory.contents import MemoryFile
from ..errors import ApiError
from ..kept.responses import KeptResponses, no_response
from ..memories.memories import Memories
from ..memories.memory import HeldMemory, Memory
from .request import ResponseRequest


class Places:
    """The memories of responses.

    A response with no name to it has a memory of its own, under its id, so that its id is a place
    for as long as that is there. In a named memory it is a point that the memory went on from.

    Args:
        memories (Memories): All memories.
        kept (KeptResponses): Responses that can be asked for again.
    """

    def __init__(self, memories: Memories, kept: KeptResponses):
        self._memories, self._kept = memories, kept

    @contextmanager
    def held(self, given: ResponseRequest) -> Iterator[Memory | None]:
        """The memory that a response is to be said to; None: none is asked for.

        What a turn makes of it is for this request alone, unless the response is stored.

        Raises:
            ApiError: If it cannot be had, or what the response goes on from is not there.
        """
        options = given.asked.memory
        if options is None:
            yield None
            return
        source = None if given.previous is None else self._after(given.previous)
        if not given.store:
            yield self._aside(options.session, source, empty=options.reset)
        elif source is not None:
            with self._memories.hold_anew(options.session, source) as memory:
                yield memory
        else:
            held = self._memories.hold(
                options.session, load=not options.reset, context=options.context == "keep"
            )
            with held as memory:
                yield memory

    def _after(self, previous: str) -> HeldMemory:
        """What a memory held after an earlier response."""
        kept = self._kept.find(previous)
        if kept is not None and kept.point is not None and kept.key is not None:
            return self._back_at(kept.key, kept.point)
        found = self._look(previous)
        if found is None and kept is not None:
            raise ApiError(
                409,
                "Nothing is kept of this response (a task, read_only, or it has left RAM): go on "
                "from the one before it.",
                code="not_kept",
                param="previous_response_id",
            )
        if found is None or not previous.startswith("resp_"):
            no_response()
        return found

    def _back_at(self, key: str, point: MemoryFile) -> HeldMemory:
        """A named memory as it was, with its context where that can be gone back to."""
        now, told = self._look(key), point.told
        if now is not None and now.saved is not None and told is not None:
            back = now.told.turns - told.turns
            if now.saved is point:
                return now
            if 0 < back <= len(now.saved.history):
                before = replace(now.saved, told=now.told).before(back)
                if _same(before, point):
                    return now.after(before, now.talk, now.behind + back)
        return HeldMemory("", None).after(point, None)

    def _aside(self, key: str, source: HeldMemory | None, *, empty: bool) -> Memory:
        """A memory that nobody else knows."""
        memory = Memory("", key)
        found = source if source or empty else self._look(key)
        if found is not None:
            memory.take(found.saved, found.talk, found.behind)
        return memory

    def _look(self, key: str) -> HeldMemory | None:
        try:
            return self._memories.look(key, context=True)
        except ApiError as error:
            if error.code != "memory_not_found":
                raise
            return None


def _same(one: MemoryFile, other: MemoryFile) -> bool:
    """Whether two memories hold the same, bit by bit, and were told the same."""
    if one.told is None or other.told is None or one.told.messages != other.told.messages:
        return False
    return one.states.keys() == other.states.keys() and all(
        one.states[i].tobytes() == other.states[i].tobytes() for i in one.states
    )
