"""How a conversation was before each of its last turns: the way to undo, edit and branch."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import mlx.core as mx

from ..memory.contents import MemoryFile
from ..text.messages import Message
from .context import Mark

UNDO_TURNS = 64
UNDO_BYTES = 64 << 20


class Said(NamedTuple):
    """What has been said, by what became of it.

    Attributes:
        messages (list[Message]): All that was fed.
        visible (list[Message]): The part of it that the next turn sees: in the context, or to be
            fed again without writing.
        pending (list[Message]): To be fed with the next turn.
        turns (int): Replies generated.
        filed (MemoryFile): The memory file that the conversation goes on from; None: there is none.
        at (str): When the last of it was fed, UTC in ISO format; empty: not known.
        source (str): The name of the file that the last turn told; empty: it told none.
    """

    messages: list[Message]
    visible: list[Message]
    pending: list[Message]
    turns: int = 0
    filed: MemoryFile | None = None
    at: str = ""
    source: str = ""


class Before(NamedTuple):
    """A conversation as it was before a turn, and what that turn brought.

    Attributes:
        mark (Mark): The memory, and where the context ended.
        said (Said): What had been said.
        new (list[Message]): What the turn was given.
        answered (bool): It was answered; otherwise only fed.
        write (bool): It was written into the memory.
    """

    mark: Mark
    said: Said
    new: list[Message]
    answered: bool
    write: bool

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return sum(m.nbytes for m, _ in self.mark.memory.values() if m is not None)

    @property
    def is_filed(self) -> bool:
        """Whether it is known from a memory file only, which has no text.

        What else was given nothing, a reset or a rewrite, wrote nothing either.
        """
        return self.write and not self.new and self.said.filed is not None

    @property
    def coming(self) -> list[Message]:
        """What the turn fed before its reply."""
        return [*self.said.pending, *self.new]


class Present(NamedTuple):
    """A conversation as it is, to be had again after turns of it were taken back.

    Attributes:
        before (Before): The memory, the context, and what has been said.
        past (Past): The way back from there.
    """

    before: Before
    past: "Past"


class Filing(NamedTuple):
    """A conversation as it was written to a memory file last: what is packed is not packed again.

    Attributes:
        said (Said): What had been said.
        matrix (mx.array): The first layer's states; None: nothing was written.
        turns (int): How many turns the file keeps.
        memory (MemoryFile): What it holds.
    """

    said: Said
    matrix: mx.array | None
    turns: int
    memory: MemoryFile


class Past:
    """The last turns, the oldest first.

    A state is kept as it was: going back is exact, and a turn costs what the states hold.

    Args:
        turns (int): How many are kept; 0: none.
        most_bytes (int): Bytes that their states may take together; older turns are let go.
    """

    def __init__(self, turns: int = UNDO_TURNS, most_bytes: int = UNDO_BYTES):
        self.turns, self.most_bytes = turns, most_bytes
        self._kept: deque[Before] = deque()
        self.undone: Present | None = None  # what there was before turns were taken back

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[Before]:
        return iter(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes of all states."""
        return sum(before.nbytes for before in self._kept)

    def add(self, before: Before) -> None:
        """Keep how it was before a turn that is complete now."""
        self.undone = None
        self._kept.append(before)
        size = self.nbytes
        while self._kept and (len(self._kept) > self.turns or size > self.most_bytes):
            size -= self._kept.popleft().nbytes

    def add_to_last(self, new: Sequence[Message]) -> None:
        """The last turn was given these as well."""
        if self._kept:
            self._kept[-1] = self._kept[-1]._replace(new=[*self._kept[-1].new, *new])

    def last(self) -> Before | None:
        """The last turn that is kept."""
        return self.back(1)

    def back(self, turns: int) -> Before | None:
        """The first of the last ``turns``, at least one; None: so many are not kept."""
        return self._kept[-turns] if turns <= len(self._kept) else None

    def messages(self) -> list[Message]:
        """All that was visible before its turns, each message once."""
        # In one context what was visible later begins with what was before.
        last = {id(before.mark.context): before.said.visible for before in self._kept}
        return list({id(m): m for visible in last.values() for m in visible}.values())

    def take(self, turns: int) -> list[Before]:
        """Take the last ``turns`` away; returns them, the oldest first.

        Raises:
            ValueError: If so many are not kept.
        """
        if turns > len(self._kept):
            kept = len(self._kept)
            has = "none is" if not kept else f"{kept} {'is' if kept == 1 else 'are'}"
            raise ValueError(f"{turns} turn{'s' * (turns != 1)} cannot be taken back: {has} kept.")
        self.undone = None
        return [self._kept.pop() for _ in range(turns)][::-1]

    def put_back(self) -> Present:
        """What there was before turns were taken back, since the last one that was added.

        Raises:
            ValueError: If none were.
        """
        if self.undone is None:
            raise ValueError(
                "There is nothing to put back: what was taken back is kept until the next turn."
            )
        return self.undone

    def copy(self) -> "Past":
        """The same turns, in a past of its own."""
        new = Past(self.turns, self.most_bytes)
        new._kept, new.undone = deque(self._kept), self.undone
        return new

    def turn_of_user_message(self, index: int, said: Sequence[Message]) -> tuple[int, int]:
        """Which turn brought the user's message ``index`` of all that was said.

        Args:
            index (int): From 0.
            said (Sequence[Message]): All messages.

        Returns:
            tuple[int, int]: How many turns back, and the message's place in what that turn fed.

        Raises:
            ValueError: If its turn is not kept.
        """
        place = [i for i, message in enumerate(said) if message["role"] == "user"][index]
        for back, before in enumerate(reversed(self._kept), start=1):
            start = len(before.said.messages)
            if start <= place < start + len(before.coming):
                return back, place - start
        raise ValueError(
            f"User message {index} lies further back than the turns that are kept "
            f"({len(self._kept)})."
        )
