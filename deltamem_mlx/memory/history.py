"""The last turns of a memory, kept in its file: the way back to before each of them.

A turn is kept as the difference, bit by bit, between the states before it and after it. So going
back is exact, keeping one more costs only that one, and the oldest can be let go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..problems import FLAG, list_of, misfits, text_field, whole_number
from .packing import pack_states, unpack_states
from .told import FINGERPRINT, MOST_MESSAGES, Fingerprints

HISTORY_TURNS = 64
HISTORY_BYTES = 2 << 20  # a file is written anew with every turn
MOST_TURNS = 1 << 10  # that a file may have
MOST_SOURCE = 256  # characters of a file's name
_FINGERPRINTS = list_of(FINGERPRINT, MOST_MESSAGES)
_SCHEMA = {
    "tokens_written": list_of(whole_number(), 1 << 16),
    "created": text_field(256),
    "added": whole_number(),
    "lost": _FINGERPRINTS,
    "system": _FINGERPRINTS,
    "turns": whole_number(),
    "alone": FLAG,
    "at": text_field(256),
    "source": text_field(MOST_SOURCE),
}
_MAY_LACK = {"at": "", "source": ""}  # in files of former versions
States = Mapping[int, np.ndarray]


@dataclass(frozen=True)
class PastTurn:
    """One of the last turns, as what there was before it differs from what there is after it.

    Attributes:
        packed (np.ndarray): uint8 [N], what `pack_states` makes of the states' differing bits.
        tokens_written (tuple[int, ...]): Before it, a count for each conversation.
        created (str): When the memory from before it was saved; empty: there was none.
        added (int): How many messages it told that were not known before.
        lost (tuple[str, ...]): Fingerprints that it made the memory forget, the oldest.
        system (tuple[str, ...]): Fingerprints of the system messages, before it.
        turns (int): Answers given before it.
        alone (bool): It came by itself: without anything that had been told before.
        at (str): When it was written, UTC in ISO format; empty: not known.
        source (str): The name of the file that it told; empty: it told none, or that is not known.
    """

    packed: np.ndarray
    tokens_written: tuple[int, ...]
    created: str
    added: int = 0
    lost: tuple[str, ...] = ()
    system: tuple[str, ...] = ()
    turns: int = 0
    alone: bool = False
    at: str = ""
    source: str = ""

    @classmethod
    def between(
        cls,
        before: States,
        after: States,
        told: tuple[Fingerprints | None, Fingerprints | None],
        *,
        tokens_written: Sequence[int],
        created: str,
        alone: bool,
        at: str,
        source: str,
    ) -> "PastTurn":
        """The turn that led from the states ``before`` to ``after``, of the same shapes.

        ``told`` is what the memory was told before it and after it; None: that is not kept.
        """
        packed = pack_states([(_bits(before) ^ _bits(after)).view(np.float32)])
        then, now = told
        if then is None or now is None:
            return cls(packed, tuple(tokens_written), created, alone=alone, at=at, source=source)
        lost = _lost(then.messages, now.messages)
        return cls(
            packed,
            tuple(tokens_written),
            created,
            added=len(now.messages) - (len(then.messages) - lost),
            lost=then.messages[:lost],
            system=then.system,
            turns=then.turns,
            alone=alone,
            at=at,
            source=source,
        )

    @property
    def nbytes(self) -> int:
        """Bytes that it takes in a file, about."""
        return self.packed.nbytes + 19 * (len(self.lost) + len(self.system))

    def states_before(self, after: States) -> dict[int, np.ndarray]:
        """The states before the turn, given those after it.

        Raises:
            ValueError: If what is kept of the turn is no difference of such states.
        """
        bits = _bits(after)
        (difference,) = unpack_states(self.packed, 1, bits.shape)
        flat, start = (bits ^ difference.view(np.uint32)).view(np.float32), 0
        if not np.isfinite(flat).all():
            raise ValueError("the states before a kept turn are not finite")
        found = {}
        for i in sorted(after):
            size = after[i].size
            found[i] = flat[start : start + size].reshape(after[i].shape)
            start += size
        return found

    def told_before(self, after: Fingerprints | None) -> Fingerprints | None:
        """What the memory had been told before the turn."""
        if after is None:
            return None
        kept = after.messages[: max(0, len(after.messages) - self.added)]
        messages = (*self.lost, *kept)[-MOST_MESSAGES:]
        return Fingerprints(after.salt, self.system, messages, self.turns)

    def as_json(self) -> dict[str, object]:
        """What a file says of it beside the packed states."""
        said = {name: getattr(self, name) for name in _SCHEMA}
        return {name: value for name, value in said.items() if value or name not in _MAY_LACK}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], packed: np.ndarray) -> "PastTurn":
        """From what `as_json` gave; `history_problems` has to find nothing in it."""
        lists = {name: tuple(values[name]) for name in ("tokens_written", "lost", "system")}
        return cls(packed, **dict(values) | lists)


def history_problems(turns: object, packed: Sequence[np.ndarray], rows: int) -> list[str]:
    """What in a file's history there may not be, a line each.

    Args:
        turns (object): What the file says of them.
        packed (Sequence[np.ndarray]): Their packed states.
        rows (int): How many conversations the memory holds.
    """
    if not isinstance(turns, list) or len(turns) > MOST_TURNS:
        return ["history: not a list of turns"]
    problems = [] if len(turns) == len(packed) else [f"history: {len(packed)} packed states"]
    for number, turn in enumerate(turns):
        if not isinstance(turn, dict):
            problems.append(f"history[{number}]: not an object")
            continue
        wrong = misfits(_MAY_LACK | turn, _SCHEMA)
        wrong += [f"{n}: not known" for n in turn if n not in _SCHEMA]
        if not wrong and len(turn["tokens_written"]) != rows:
            wrong = [f"tokens_written: counts of {len(turn['tokens_written'])}"]
        problems += [f"history[{number}].{line}" for line in wrong]
    bad = [p for p in packed if p.dtype != np.uint8 or p.ndim != 1]
    return problems + [f"history: {p.dtype} {list(p.shape)}, expected uint8 [N]" for p in bad]


def bounded(history: Sequence[PastTurn], turns: int, most_bytes: int) -> tuple[PastTurn, ...]:
    """The newest of these, at most ``turns`` that take ``most_bytes`` together, and no more than a
    file may have."""
    kept, size, turns = 0, 0, min(turns, MOST_TURNS)
    for turn in reversed(history):
        size += turn.nbytes
        if kept == turns or size > most_bytes:
            break
        kept += 1
    return tuple(history[len(history) - kept :])


def _bits(states: States) -> np.ndarray:
    flat = [np.ascontiguousarray(states[i], np.float32).ravel() for i in sorted(states)]
    return np.concatenate(flat).view(np.uint32)


def _lost(before: Sequence[str], after: Sequence[str]) -> int:
    """How many of the first messages are gone: what is left of them begins the others."""
    for gone in range(len(before)):
        left = before[gone:]
        if left[: len(after)] == tuple(after[: len(left)]) and len(left) <= len(after):
            return gone
    return len(before)
