"""Taking back turns of a memory that lies in a file."""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from ..files import Witness, expanded
from .contents import MemoryFile
from .file import read_memory, write_memory


def undo_memory_file(path: str | Path, turns: int = 1) -> MemoryFile:
    """Take back the last turns of a memory file, as if they had never been.

    The file holds the memory from before them then, bit for bit, and the turns before those. What
    a memory was told last by `deltamem-mlx generate` and `chat`, by a server, or by a session that
    was saved with ``history`` can be taken back.

    Args:
        path (Path): The file.
        turns (int): How many turns: an answer, or a text that was remembered.

    Returns:
        MemoryFile: What the file holds now. ``history`` are the turns that can still be taken
        back.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If ``turns`` is less than 1, so many are not kept, or the file is damaged.
        OSError: If it cannot be written, or another program has changed it meanwhile; what was
          there is unchanged then.
    """
    path, witness = expanded(path), Witness()
    if turns < 1:
        raise ValueError(f"turns is {turns}; expected 1 or more.")
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
    write_memory(path, before, witness)
    return before
