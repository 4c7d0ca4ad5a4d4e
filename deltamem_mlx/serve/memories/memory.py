"""One memory of a server: what it holds, and who may change it."""

import threading
from dataclasses import dataclass, field, replace

import numpy as np

from ...memory.contents import MemoryFile
from ...memory.likeness import likenesses
from ...memory.measures import layer_measures
from ...memory.told import Fingerprints
from ...session.conversation import Conversation

_FINGERPRINT_BYTES = 80  # of a text of 16 characters in a tuple


@dataclass(frozen=True)
class HeldMemory:
    """What a memory holds after a turn; what comes after is another one of these.

    Attributes:
        id (str): SHA-256 of its key, in hex.
        key (str): The key; None where only the file is known.
        saved (MemoryFile): As its file holds it; None: empty.
        talk (Conversation): With its context; None where that was dropped from RAM.
        told (Fingerprints): What it was told.
        behind (int): Turns that ``talk`` has seen and that were taken back since.
        undone (MemoryFile): As it was before turns were taken back; None: none were since the last.
        memory_bytes, context_bytes, note_bytes (int): What its states, its context, and all that
          is kept beside them take in RAM. Every turn of any memory asks all of them.
    """

    id: str
    key: str | None
    saved: MemoryFile | None = None
    talk: Conversation | None = None
    told: Fingerprints = field(default_factory=Fingerprints.nothing)
    behind: int = 0
    undone: MemoryFile | None = None
    memory_bytes: int = 0
    context_bytes: int = 0
    note_bytes: int = 0

    def after(
        self,
        saved: MemoryFile | None,
        talk: Conversation | None,
        behind: int = 0,
        undone: MemoryFile | None = None,
    ) -> "HeldMemory":
        """What it holds once it is as ``saved`` says; None: nothing."""
        beside = _bytes_beside(undone) + _state_bytes(undone) if undone else 0
        if saved is None:
            return HeldMemory(self.id, self.key, undone=undone, note_bytes=beside)
        told = saved.told or Fingerprints.nothing()
        seen = {id(m): m for m in [*talk.past.messages(), *talk.said.visible]} if talk else {}
        said = sum(len(str(m.get("content"))) for m in seen.values())
        return HeldMemory(
            self.id,
            self.key,
            saved,
            talk,
            told,
            behind,
            undone,
            memory_bytes=_state_bytes(saved),
            context_bytes=sum(c.nbytes for c in talk.context.cache) + said if talk else 0,
            note_bytes=_bytes_beside(saved) + beside,
        )

    @property
    def nbytes(self) -> int:
        """Bytes in RAM, the context included."""
        return self.memory_bytes + self.context_bytes + self.note_bytes

    @property
    def context_tokens(self) -> int:
        """Tokens in the context, as far as the turns in it have not been taken back."""
        if self.talk is None:
            return 0
        if not self.behind:
            return len(self.talk.context.tokens)
        place = self.talk.past.back(self.behind)
        here = place is not None and place.mark.context is self.talk.context.which
        return place.mark.length if place is not None and here else 0

    @property
    def is_known(self) -> bool:
        """Whether there is anything to know of it: what it holds, or what was taken back."""
        return self.saved is not None or self.undone is not None

    @property
    def redo_turns(self) -> int:
        """How many turns were taken back that can be put back."""
        if self.undone is None:
            return 0
        return len(self.undone.history) - (len(self.saved.history) if self.saved else 0)

    def has_written(self, turns: int) -> bool:
        """Whether any of the last turns, so many of which are kept, has written anything."""
        saved = self.saved
        return saved is not None and (
            list(saved.history[-turns].tokens_written) != saved.tokens_written
        )

    def turns(self) -> list[dict[str, object]]:
        """The turns that can be taken back, the last one first; no text."""
        if self.saved is None:
            return []
        found, after, total = [], self.saved.tokens_written[0], self.told.turns
        for back, turn in enumerate(reversed(self.saved.history), start=1):
            found.append(
                {
                    "object": "memory.turn",
                    "back": back,
                    "answers": total - turn.turns,
                    "messages": turn.added,
                    "tokens_written": after - turn.tokens_written[0],
                    "total_tokens_written": after,
                    "before": turn.created or None,
                }
            )
            after, total = turn.tokens_written[0], turn.turns
        return found

    def stats(self) -> dict[str, object]:
        """Numbers about it; no text."""
        return {
            "object": "memory",
            "session": self.key,
            "id": self.id,
            "turns": self.told.turns,
            "undo_turns": len(self.saved.history) if self.saved else 0,
            "redo_turns": self.redo_turns,
            "messages": len(self.told.messages),
            "tokens_written": self.saved.tokens_written[0] if self.saved else 0,
            "bytes": self.memory_bytes,
            "context_tokens": self.context_tokens,
            "context_bytes": self.context_bytes,
            "updated": self.saved.created if self.saved else None,
        }

    def state(self) -> dict[str, object]:
        """The same, with its states, and how like they are to those after its last turns.

        Numbers of states have four digits: the file that is exported has all of them.
        """
        return self.stats() | {
            "object": "memory.state",
            "layers": self._layers(),
            "history": self._history(),
        }

    def _layers(self) -> list[dict[str, object]]:
        if self.saved is None:
            return []
        return [
            {
                "layer": measured.layer,
                "norm": _short(measured.norm),
                "effective_rank": _short(measured.effective_rank),
                "states": _shortened(self.saved.states[measured.layer][0]),
            }
            for measured in layer_measures(self.saved.states)
        ]

    def _history(self) -> list[dict[str, object]]:
        if self.saved is None:
            return []
        found = likenesses(replace(self.saved, told=self.told))
        return [
            {
                "back": back,
                "turns": then.told.turns if then.told else 0,
                "tokens_written": then.tokens_written[0],
                "similarity": _short(similarity),
            }
            for back, (then, similarity) in enumerate(found, start=1)
        ]


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
    def told(self) -> Fingerprints:
        """What it was told."""
        return self.contents.told

    def is_called(self, key: str | None) -> None:
        """Its key has become known."""
        if self.contents.key is None:
            self.contents = replace(self.contents, key=key)

    def take(
        self,
        saved: MemoryFile | None,
        talk: Conversation | None = None,
        behind: int = 0,
        undone: MemoryFile | None = None,
    ) -> None:
        """Become what ``saved`` is."""
        self.contents = self.contents.after(saved, talk, behind, undone)

    def see(self, talk: Conversation) -> None:
        """Have its context again; what it was told is as before."""
        now = self.contents
        self.contents = replace(now.after(now.saved, talk, 0, now.undone), told=now.told)

    def recall(self, before: HeldMemory) -> None:
        """Know what was fed before another program went on, if that kept no note of it."""
        now, then = self.contents, before.saved
        if now.saved is None or then is None or now.saved.told or now.saved.history:
            return
        if now.saved.tokens_written[0] >= then.tokens_written[0]:
            self.contents = replace(now, told=before.told)

    def drop_context(self) -> None:
        """Go on from the memory alone."""
        self.contents = replace(self.contents, talk=None, behind=0, context_bytes=0)


def _state_bytes(saved: MemoryFile) -> int:
    return sum(state.nbytes for state in saved.states.values())


def _bytes_beside(saved: MemoryFile) -> int:
    """What is kept of a memory beside its states."""
    told = saved.told or Fingerprints.nothing()
    fingerprints = len(told.system) + len(told.messages)
    past = sum(turn.nbytes for turn in saved.history)
    return len(saved.note) + _FINGERPRINT_BYTES * fingerprints + past


def _short(number: float) -> float:
    return float(f"{number:.4g}")


def _shortened(states: np.ndarray) -> list[object]:
    """Nested lists of numbers with four digits."""
    return [_short(part) if states.ndim == 1 else _shortened(part) for part in states]
