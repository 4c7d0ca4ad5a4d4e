"""Memories as lists and cards."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from ..memory.contents import MemoryFile
from ..memory.kept import KeptTurn, kept_turns
from ..memory.shelf import ShelvedMemory
from .columns import fields, one_line, table

_ID = 12  # characters of a hash that are shown
_TURNS = 12  # that a card lists


def memories_text(memories: Sequence[ShelvedMemory], default: Path | None = None) -> str:
    """A line a memory; that of the file ``default`` says that it is the default."""
    rows = []
    for memory in memories:
        file = memory.file
        if file is None:
            why = memory.problem.replace(str(memory.path), "it")
            said = ["", "", "", one_line(why, 70), ""]
        else:
            said = [_tokens(memory), _turns(memory), _size(memory), _base(memory), file.adapter[:8]]
        rows.append([_name(memory), *said, _when(memory)])
        rows[-1][-1] += "  default" if memory.path == default else ""
    columns = ["<name", "tokens", "can undo", "file", "<base model", "<adapter", "<last used"]
    if not any(row[2] not in ("", "0") for row in rows):
        columns, rows = _without(2, columns), [_without(2, row) for row in rows]
    return table(columns, rows)


def _without(place: int, row: list[str]) -> list[str]:
    return [*row[:place], *row[place + 1 :]]


def memory_card(memory: ShelvedMemory) -> str:
    """What is known of one memory."""
    file = memory.file
    assert file is not None
    several = len(file.tokens_written)
    card = fields(
        {
            "memory": memory.name,
            "tokens written": _tokens(memory),
            "turns that can be undone": _turns(memory),
            "conversations": f"{several}" if several > 1 else None,
            "size": f"{_size(memory)}: {_states(file)} are its states, the rest goes back over "
            "the last turns"
            if file.history
            else _size(memory),
            "layers": f"{len(file.states)}",
            "base model": _base(memory),
            "adapter": file.adapter,
            "last used": _when(memory),
            "note": one_line(file.note, 200) or None,
            "file": str(memory.path),
        }
    )
    turns = kept_turns(file)
    return f"{card}\n\n{_turns_text(turns)}" if turns else card


def _turns_text(turns: Sequence[KeptTurn]) -> str:
    """Turns as a table, the last first: as they would be taken back."""
    rows = [
        [str(back), _time(turn.saved), turn_words(turn), f"{turn.tokens:+,}", _share(turn.left)]
        for back, turn in enumerate(reversed(turns), start=1)
    ]
    columns = ["back", "<written", "<turn", "tokens", "left"]
    shown = table(columns, rows[:_TURNS])
    rest = len(rows) - _TURNS
    more = f"\n… and {rest} before them: all with --json" if rest > 0 else ""
    said = "left: how much of the change that the turn made is still in the states"
    if any(turn.left > 1.005 for turn in turns):
        said += "; over 100%: later turns added to it"
    return f"{shown}{more}\n\n{said}"


def taken_text(turns: Sequence[KeptTurn]) -> str:
    """The turns that are to be taken back, or were put back, the last first."""
    rows = [
        [str(back), _time(turn.saved), turn_words(turn), f"{turn.tokens:+,}"]
        for back, turn in enumerate(reversed(turns), start=1)
    ]
    return table(["back", "<written", "<turn", "tokens"], rows)


def turn_words(turn: KeptTurn) -> str:
    """What a turn was: the file that it told, or whether it was answered."""
    if turn.tokens < 0:
        return "emptied"
    told = turn.messages - turn.answers
    if turn.source:
        return one_line(turn.source, 40)
    if turn.answers > 0:
        return "a message and its answer" if turn.answers == 1 else f"{turn.answers} answers"
    return f"told {told} message{'s' * (told != 1)}" if told > 0 else "told"


def _share(left: float) -> str:
    return f"{max(0.0, left):.0%}"


def _time(created: str) -> str:
    """As the clock here says; empty where it is not known."""
    try:
        when = datetime.fromisoformat(created)
    except ValueError:
        return ""
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return when.astimezone().strftime("%Y-%m-%d %H:%M")


def memories_json(memory: ShelvedMemory) -> dict[str, object]:
    """The same as JSON has it."""
    file = memory.file
    known: dict[str, object] = {
        "name": memory.name,
        "path": str(memory.path),
        "bytes": memory.bytes,
        "used": memory.used.isoformat(timespec="seconds"),
    }
    if file is None:
        return known | {"problem": memory.problem}
    return known | {
        "tokens_written": file.tokens_written,
        "base_model": file.base_model,
        "adapter": file.adapter,
        "undo_turns": len(file.history),
        "turns": [vars(turn) for turn in kept_turns(file)],
        "note": file.note,
    }


def _name(memory: ShelvedMemory) -> str:
    return memory.name if len(memory.name) < 64 else f"{memory.name[:_ID]}…"


def _tokens(memory: ShelvedMemory) -> str:
    return f"{sum(memory.file.tokens_written):,}" if memory.file else ""


def _turns(memory: ShelvedMemory) -> str:
    """How many can be taken back."""
    return f"{len(memory.file.history)}" if memory.file else ""


def _size(memory: ShelvedMemory) -> str:
    return f"{memory.bytes / 1000:,.1f} KB"


def _states(file: MemoryFile) -> str:
    return f"{sum(state.nbytes for state in file.states.values()) / 1000:,.1f} KB"


def _base(memory: ShelvedMemory) -> str:
    named = memory.file.base_model if memory.file else {}
    return str(named.get("name") or named.get("model_type") or "unknown")


def _when(memory: ShelvedMemory) -> str:
    return memory.used.astimezone().strftime("%Y-%m-%d %H:%M")
