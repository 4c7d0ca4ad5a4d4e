"""Turns taken back in a memory file: killed or changed meanwhile, no turn is lost for good."""

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import deltamem_mlx as dm
from deltamem_mlx.files import FileChanged, Witness
from deltamem_mlx.memory.file import MemoryFile, read_memory, undone_file, write_memory
from deltamem_mlx.memory.undo import redo_memory_file
from deltamem_mlx.serve.errors import ApiError
from deltamem_mlx.serve.memories.folder import MemoryFolder, id_of

KEY = id_of("me")
There = tuple[bytes, bytes | None]


def told(memory: MemoryFile, turn: int) -> MemoryFile:
    """The memory after one more turn."""
    states = {i: state + turn for i, state in memory.states.items()}
    written = [count + turn for count in memory.tokens_written]
    return MemoryFile(states, "adapter", {"name": "m"}, written, f"t{turn}").keeping(memory)


def chain(first: int, *turns: int) -> MemoryFile:
    memory = MemoryFile(
        {0: np.full((1, 2, 3, 3), first, np.float32)}, "adapter", {"name": "m"}, [first], "t0"
    )
    for turn in turns:
        memory = told(memory, turn)
    return memory


def there(path: Path, aside: Path) -> There:
    """A memory's file, and what it would be after all was put back; None: nothing is kept."""
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(path.parent, aside)
    back = None
    with suppress(ValueError):
        dm.redo_memory_file(aside / path.name)
        back = (aside / path.name).read_bytes()
    return path.read_bytes(), back


def served(path: Path) -> None:
    """As a server takes a turn back."""
    folder, memory = MemoryFolder(path.parent, None), read_memory(path)
    folder.see(KEY)
    folder.write(KEY, memory.before(), folder.undone(KEY, memory) or memory)
    folder.close()


ACTS: dict[str, Callable[[Path], object]] = {
    "undo": lambda path: dm.undo_memory_file(path, redo=True),
    "undo two": lambda path: dm.undo_memory_file(path, 2, redo=True),
    "redo": dm.redo_memory_file,
    "redo one": lambda path: dm.redo_memory_file(path, 1),
    "a server": served,
}


@pytest.mark.parametrize("kill", range(3))
@pytest.mark.parametrize(
    "name, before", [(name, n) for name in ACTS for n in (0, 2) if n or "redo" not in name]
)
def test_killed_between_two_writes_either_memory_is_there_with_what_leads_back(
    name: str, before: int, kill: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept" / f"{KEY}.safetensors"
    write_memory(path, chain(1, 2, 3, 4, 5, 6))
    if before:
        dm.undo_memory_file(path, before, redo=True)
    first, whole = there(path, tmp_path / "aside"), tmp_path / "whole"
    shutil.copytree(path.parent, whole)
    ACTS[name](whole / path.name)
    then = there(whole / path.name, tmp_path / "aside")
    replace, left = os.replace, [1] * kill

    def deadly(*args: object) -> None:
        if not left:
            raise KeyboardInterrupt
        left.pop()
        replace(*args)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(os, "replace", deadly)
        ACTS[name](path)
    assert there(path, tmp_path / "aside") in (first, then)


def test_what_is_taken_back_for_good_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    write_memory(path, chain(1, 2, 3))
    dm.undo_memory_file(path, redo=True)
    dm.undo_memory_file(path)
    assert not undone_file(path).exists()


def used_meanwhile(path: Path, look: Callable[[], None]) -> tuple[bytes, bytes]:
    """A memory and what was taken back from it, by another program since it was looked at."""
    write_memory(path, chain(1, 2, 3))
    look()
    write_memory(path, chain(1, 2, 3, 4))
    dm.undo_memory_file(path, redo=True)
    return path.read_bytes(), undone_file(path).read_bytes()


def test_what_another_program_has_told_or_taken_back_is_left(tmp_path: Path) -> None:
    path, witness = tmp_path / "me.safetensors", Witness()
    before = used_meanwhile(path, lambda: witness.note(path))
    with pytest.raises(FileChanged):
        dm.undo_memory_file(path, redo=True, witness=witness)
    assert (path.read_bytes(), undone_file(path).read_bytes()) == before


def test_a_server_leaves_what_another_program_has_taken_back(tmp_path: Path) -> None:
    path, folder = tmp_path / f"{KEY}.safetensors", MemoryFolder(tmp_path, None)
    before = used_meanwhile(path, lambda: folder.see(KEY))
    with pytest.raises(ApiError):
        folder.write(KEY, chain(1, 2), chain(1, 2, 3))
    assert (path.read_bytes(), undone_file(path).read_bytes()) == before
    folder.close()


@pytest.mark.parametrize("turns", ["1", True, 1.0])
def test_turns_are_a_whole_number(tmp_path: Path, turns: object) -> None:
    write_memory(tmp_path / "me.safetensors", chain(1, 2))
    for act in (dm.undo_memory_file, redo_memory_file):
        with pytest.raises(TypeError, match=r"turns is .*, expected a whole number"):
            act(tmp_path / "me.safetensors", turns)
    assert len(read_memory(tmp_path / "me.safetensors").history) == 1
