"""What a memory file holds, and what it held before each of its last turns."""

from dataclasses import dataclass, replace

import numpy as np

from .history import HISTORY_BYTES, HISTORY_TURNS, PastTurn, bounded
from .told import Fingerprints


@dataclass(frozen=True)
class MemoryFile:
    """A memory as its file holds it.

    Args:
        states (dict[int, np.ndarray]): Layer index → float32 [B, H, r, r].
        adapter (str): Fingerprint of the adapter that wrote it.
        base_model (dict[str, object]): Name, type and shape of the model.
        tokens_written (list[int]): Tokens written, per conversation.
        created (str): When it was saved, UTC in ISO format.
        note (str): Free text.
        told (Fingerprints): What it was told, as fingerprints; None: that is not kept.
        history (tuple[PastTurn, ...]): The last turns, the oldest first: the way back.
    """

    states: dict[int, np.ndarray]
    adapter: str
    base_model: dict[str, object]
    tokens_written: list[int]
    created: str
    note: str = ""
    told: Fingerprints | None = None
    history: tuple[PastTurn, ...] = ()

    @property
    def is_new(self) -> bool:
        """Whether nothing was ever written into it."""
        return not any(self.tokens_written) and not any(s.any() for s in self.states.values())

    def keeping(
        self,
        before: "MemoryFile",
        *,
        turns: int = HISTORY_TURNS,
        most_bytes: int = HISTORY_BYTES,
        alone: bool = False,
        at: str = "",
        source: str = "",
    ) -> "MemoryFile":
        """This, with the way back to ``before``, the memory before its last turn.

        Args:
            before (MemoryFile): The same memory, and the turns before that.
            turns (int): How many turns are kept; older ones are let go.
            most_bytes (int): Bytes that they may take together.
            alone (bool): The turn came without anything that had been told before.
            at (str): When it was written; empty: when this was saved.
            source (str): The name of the file that it told, if it told one.
        """
        turn = PastTurn.between(
            before.states,
            self.states,
            (before.told, self.told),
            tokens_written=before.tokens_written,
            created=before.created,
            alone=alone,
            at=at or self.created,
            source=source,
        )
        return replace(self, history=bounded((*before.history, turn), turns, most_bytes))

    def before(self, turns: int = 1) -> "MemoryFile":
        """The memory as it was before its last ``turns``, bit for bit.

        Raises:
            ValueError: If so many are not kept, or what is kept is damaged.
        """
        if not 0 <= turns <= len(self.history):
            raise ValueError(self.cannot_go_back(turns))
        found = self
        for turn in reversed(self.history[len(self.history) - turns :]):
            found = replace(
                found,
                states=turn.states_before(found.states),
                tokens_written=list(turn.tokens_written),
                created=turn.created,
                told=turn.told_before(found.told),
                history=found.history[:-1],
            )
        return found

    def cannot_go_back(self, turns: int) -> str:
        """Why so many turns cannot be taken back, in a sentence."""
        kept = len(self.history)
        has = (
            f"the last {kept} are kept with the memory" if kept else "none is kept with the memory"
        )
        return f"{turns} turn{'s' * (turns != 1)} cannot be taken back: {has}."
