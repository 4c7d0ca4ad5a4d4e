"""Sessions of models that lie in several processes, saved as one process would save them."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import ROOT
from forked import Nursery
from launching import launch
from spread_moves_run import MODELS, move

from deltamem_mlx.memory.file import read_memory, write_memory

# In the last two, layers that can be cut and layers that cannot lie in different processes.
RUNS = [
    ("tensor", 2, "gpt_oss"),
    *(("pipeline", 3, name) for name in ("qwen3_moe", "qwen3_next", "ministral3")),
]
MEMORIES = {"qwen3_next": 2}  # of four layers


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "size", "name"), RUNS)
def test_a_session_of_several_processes_is_that_of_one(
    kind: str, size: int, name: str, tmp_path: Path, nursery: Nursery
) -> None:
    program, case = ROOT / "tests/helpers/spread_cases.py", f"session/{kind}/{name}"
    done = launch(nursery, program, tmp_path, case, size=size, timeout=200)
    for rank in range(size):
        file = tmp_path / f"{rank}.json"
        assert file.exists(), done.stderr[-3000:]
        found = json.loads(file.read_text())[case]
        for alike in found["said"]:
            assert len(set(alike)) == 1, (name, found["said"])
        assert found["same_text"]
        assert found["same_arrays"] or kind == "tensor"
        assert found["shapes"][0] == found["shapes"][1]
        assert found["states"] <= (1e-5 if kind == "tensor" else 0.0)
        assert found["restored"] == 0.0
        assert found["undone"] == 0.0
        whole, parts = found["history"]
        assert len(whole) == len(parts) == 3
        assert whole == parts or kind == "tensor"
        # A state's numbers of 4 bytes.
        assert found["stats"] == MEMORIES.get(name, 4) * 4 * 4 * 4
        one, several = found["kept"]
        assert one == several > 1
        assert "nothing.safetensors" in found["refused"]


@pytest.mark.slow
def test_what_any_number_of_processes_saved_any_other_number_goes_on_with(
    tmp_path: Path, nursery: Nursery
) -> None:
    alone, program = mx.distributed.init(), ROOT / "tests/helpers/spread_moves_run.py"
    move(tmp_path, alone)
    for size in (3, 2, 3):
        done = launch(nursery, program, tmp_path, size=size, timeout=500)
        assert done.returncode == 0, done.stderr[-3000:]
    move(tmp_path, alone)
    for way in MODELS:
        moves = sorted(path.name for path in (tmp_path / way).glob("by-*-through-*"))
        assert moves == [f"by-{a}-through-{b}" for a in (1, 2, 3) for b in (1, 2, 3)]
        for source in (tmp_path / way).glob("by-?"):
            through = [tmp_path / way / f"{source.name}-through-{n}" for n in (1, 2, 3)]
            kept = timeless(source / "memory.safetensors", tmp_path)
            assert [timeless(to / "memory.safetensors", tmp_path) for to in through] == [kept] * 3
            saved = of_folder(source / "session")
            assert [of_folder(to / "session") for to in through] == [saved] * 3
            assert len({(to / "said.json").read_text() for to in through}) == 1
    one, several = (tmp_path / "pipeline" / f"by-{n}" for n in (1, 2))
    assert of_folder(one / "session") == of_folder(several / "session")


def timeless(path: Path, folder: Path) -> bytes:
    """A memory file's bytes, had it been written at no time."""
    new = folder / "timeless.safetensors"
    write_memory(new, replace(read_memory(path), created=""))
    return new.read_bytes()


def of_folder(folder: Path) -> tuple[dict, bytes, bytes]:
    """What a saved session says, what no two have alike left out, and its files."""
    values = json.loads((folder / "session.json").read_text())
    files = [folder / values[part]["file"] for part in ("context", "past")]
    for name in ("created", "checksum", "context"):
        del values[name]
    del values["past"]["file"], values["past"]["sha256"]
    return values, *(file.read_bytes() for file in files)
