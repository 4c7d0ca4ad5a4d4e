"""Taking back turns of a memory that lies in a file, and putting them back."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from ..files import Witness, expanded, write_atomically
from ..problems import as_whole
from .contents import MemoryFile
from .file import read_memory, undone_file, write_memory


def undo_memory_file(
    path: str | Path, turns: int = 1, *, redo: bool = False, witness: Witness | None = None
) -> MemoryFile:
    """Take back the last turns of a memory file, as if they had never been.

    The file holds the memory from before them then, bit for bit, and the turns before those. What
    a memory was told last by `deltamem-mlx generate` and `chat`, by a server, or by a session that
    was saved with ``history`` can be taken back.

    Args:
        path (Path): The file.
        turns (int): How many turns: an answer, or a text that was remembered.
        redo (bool): Keep what is taken back in a hidden file beside it, for ``redo_memory_file``,
          until the memory is written again.
        witness (Witness): Noted the file before its turns were looked at: what another program has
          told it since then is not taken back. Default: it is looked at here.

    Returns:
        MemoryFile: What the file holds now. ``history`` are the turns that can still be taken
        back.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``turns`` is no whole number.
        ValueError: If ``turns`` is less than 1, so many are not kept, or the file is damaged.
        OSError: If it cannot be written, or another program has changed it meanwhile; what was
          there is unchanged then.
    """
    path = expanded(path)
    if as_whole("turns", turns) < 1:
        raise ValueError(f"turns is {turns}; expected 1 or more.")
    if witness is None:
        witness = Witness()
        witness.note(path)
    memory = read_memory(path)
    if turns > len(memory.history):
        raise ValueError(f"{path}: {memory.cannot_go_back(turns)}")
    try:
        before = memory.before(turns)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from error
    if not before.created:  # there was no file then
        before = replace(before, created=datetime.now(UTC).isoformat(timespec="seconds"))
    # Written first: a kill between the two loses nothing, as what does not lead to the memory that
    # is there is never put back. What was taken back before is kept already, with these turns.
    if redo and taken_back(path, memory) is None:
        former = path.read_bytes()
        witness.check(path)
        write_atomically(undone_file(path), lambda part: part.write_bytes(former), 0o600)
    write_memory(path, before, witness, keep_undone=redo)
    return before


def redo_memory_file(path: str | Path, turns: int | None = None) -> MemoryFile:
    """Put back what was taken back from a memory file since it was last written otherwise.

    Args:
        path (Path): The file, from which ``undo_memory_file`` took turns with ``redo``.
        turns (int): How many, the earliest first, as they were told; the rest can still be put
          back then. ``None``: all.

    Returns:
        MemoryFile: What the file holds now: what it held after those turns, bit for bit.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``turns`` is no whole number.
        ValueError: If ``turns`` is less than 1, so many are not there to put back, or a file is
          damaged.
        OSError: As of ``undo_memory_file``.
    """
    path, witness = expanded(path), Witness()
    if turns is not None and as_whole("turns", turns) < 1:
        raise ValueError(f"turns is {turns}; expected 1 or more.")
    witness.note(path)
    now = read_memory(path)
    former = taken_back(path, now)
    if former is None:
        raise ValueError(
            f"{path}: there is nothing to put back. What was taken back is kept until the memory "
            "is written again."
        )
    there = len(former.history) - len(now.history)
    if turns is not None and turns > there:
        raise ValueError(
            f"{path}: {turns} turns cannot be put back: {there} "
            f"{'was' if there == 1 else 'were'} taken back."
        )
    found = former if turns in (None, there) else former.before(there - turns)
    write_memory(path, found, witness, keep_undone=found is not former)
    return found


def taken_back(path: Path, now: MemoryFile) -> MemoryFile | None:
    """The memory before turns were taken back that led to ``now``; None: none is kept."""
    try:
        former = read_memory(undone_file(path))
        turns = len(former.history) - len(now.history)
        before = former.before(turns) if turns > 0 else None
    except (OSError, ValueError):
        return None
    same = (
        before is not None
        and before.adapter == now.adapter
        and before.tokens_written == now.tokens_written
        and before.states.keys() == now.states.keys()
        and all(np.array_equal(state, now.states[i]) for i, state in before.states.items())
    )
    return former if same else None
