"""One memory of a server: what it holds, and who may change it."""

import threading
from dataclasses import dataclass, field, replace

from ..memory.file import MemoryFile
from ..session.conversation import Conversation
from .history import History

_FINGERPRINT_BYTES = 80  # of a text of 16 characters in a tuple


@dataclass(frozen=True)
class HeldMemory:
    """What a memory holds after a turn; what comes after is another one of these.

    Attributes:
        id (str): SHA-256 of its key, in hex.
        key (str): The key; None where only the file is known.
        saved (MemoryFile): As its file holds it; None: empty.
        talk (Conversation): With its context; None where that was dropped from RAM.
        history (History): What it was fed.
        memory_bytes, context_bytes, note_bytes (int): What its states, its context, and all that
          is kept beside them take in RAM. Every turn of any memory asks all of them.
    """

    id: str
    key: str | None
    saved: MemoryFile | None = None
    talk: Conversation | None = None
    history: History = field(default_factory=History.fresh)
    memory_bytes: int = 0
    context_bytes: int = 0
    note_bytes: int = 0

    def after(self, saved: MemoryFile | None, talk: Conversation | None) -> "HeldMemory":
        """What it holds once it is as ``saved`` says; None: nothing."""
        if saved is None:
            return HeldMemory(self.id, self.key)
        history = History.from_note(saved.note)
        fingerprints = len(history.system) + len(history.messages)
        said = sum(len(str(m.get("content"))) for m in talk.said.visible) if talk else 0
        return HeldMemory(
            self.id,
            self.key,
            saved,
            talk,
            history,
            memory_bytes=sum(state.nbytes for state in saved.states.values()),
            context_bytes=sum(c.nbytes for c in talk.context.cache) + said if talk else 0,
            note_bytes=len(saved.note) + _FINGERPRINT_BYTES * fingerprints,
        )

    @property
    def nbytes(self) -> int:
        """Bytes in RAM, the context included."""
        return self.memory_bytes + self.context_bytes + self.note_bytes

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


class Memory:
    """One memory. Whoever holds ``lock`` may change it; anyone may look at ``contents``.

    Args:
        id (str): SHA-256 of its key, in hex.
        key (str): The key; None where only the file is known.

    Attributes:
        contents (HeldMemory): As after the last turn.
        users (int): Requests that have it in hand, or wait for it.
    """

    def __init__(self, id: str, key: str | None):
        self.lock = threading.Lock()
        self.contents = HeldMemory(id, key)
        self.users = 0

    @property
    def id(self) -> str:
        """SHA-256 of its key, in hex."""
        return self.contents.id

    @property
    def history(self) -> History:
        """What it was fed."""
        return self.contents.history

    def is_called(self, key: str | None) -> None:
        """Its key has become known."""
        if self.contents.key is None:
            self.contents = replace(self.contents, key=key)

    def take(self, saved: MemoryFile | None, talk: Conversation | None = None) -> None:
        """Become what ``saved`` is."""
        self.contents = self.contents.after(saved, talk)

    def recall(self, before: HeldMemory) -> None:
        """Know what was fed before another program went on, if that kept no note of it."""
        now, then = self.contents, before.saved
        if now.saved is None or then is None or now.history.turns:
            return
        if now.saved.tokens_written[0] >= then.tokens_written[0]:
            self.contents = replace(now, history=before.history)

    def drop_context(self) -> None:
        """Go on from the memory alone."""
        self.contents = replace(self.contents, talk=None, context_bytes=0)
