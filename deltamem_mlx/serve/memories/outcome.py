"""What a turn makes of a memory."""

from dataclasses import dataclass

from ...memory.file import MemoryFile
from ...session.conversation import Conversation


@dataclass(frozen=True)
class TurnOutcome:
    """What a turn came to.

    Attributes:
        talk (Conversation): With its context.
        saved (MemoryFile): The memory, as its file is to hold it.
        written (int): Tokens written by this turn.
        known (int): Messages of the request that had been fed before.
        back (int): Turns that were taken back for it.
        keep_partial (bool): Keep it even if the client has gone.
        new (bool): There was no memory of this key before, or it was begun anew.
        strengths (list[dict]): How strongly its messages were written, as `TurnStrengths` says it;
          None: that is not known, or was not asked.
        meant (str): Of a new one, the memory whose key was probably meant; empty: none.
    """

    talk: Conversation
    saved: MemoryFile
    written: int
    known: int
    back: int
    keep_partial: bool
    new: bool
    strengths: list[dict[str, object]] | None = None
    meant: str = ""
