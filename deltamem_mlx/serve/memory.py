"""One memory of a server: what it holds, and who may change it."""

import threading
from dataclasses import dataclass, field

from ..memory.file import MemoryFile
from ..session.conversation import Conversation
from .history import History


@dataclass
class Memory:
    """One memory. Whoever holds ``lock`` may change it.

    Attributes:
        id (str): SHA-256 of its key, in hex.
        key (str): The key.
        saved (MemoryFile): As after the last turn; None: empty.
        history (History): What it was fed.
        talk (Conversation): With its context; None where that was dropped from RAM.
        users (int): Requests that have it in hand, or wait for it.
        memory_bytes, context_bytes (int): What it has in RAM. Kept, for every turn of any memory
          asks all of them.
    """

    id: str
    key: str
    lock: threading.Lock = field(default_factory=threading.Lock)
    saved: MemoryFile | None = None
    history: History = field(default_factory=History.fresh)
    talk: Conversation | None = None
    users: int = 0
    memory_bytes: int = 0
    context_bytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes in RAM, the context included."""
        return self.memory_bytes + self.context_bytes

    def take(self, saved: MemoryFile | None, talk: Conversation | None = None) -> None:
        """Become what ``saved`` is."""
        self.saved, self.talk = saved, talk
        self.history = History.from_note(saved.note) if saved else History.fresh()
        self.memory_bytes = sum(s.nbytes for s in saved.states.values()) if saved else 0
        self.context_bytes = sum(c.nbytes for c in talk.context.cache) if talk else 0

    def drop_context(self) -> None:
        """Go on from the memory alone."""
        self.talk, self.context_bytes = None, 0

    def stats(self) -> dict[str, object]:
        """Numbers about it; no text."""
        return {
            "object": "memory",
            "session": self.key,
            "id": self.id,
            "turns": self.history.turns,
            "messages": len(self.history.messages),
            "tokens_written": self.saved.tokens_written[0] if self.saved else 0,
            "bytes": self.memory_bytes,
            "context_tokens": len(self.talk.context.tokens) if self.talk else 0,
            "context_bytes": self.context_bytes,
            "updated": self.saved.created if self.saved else None,
        }
