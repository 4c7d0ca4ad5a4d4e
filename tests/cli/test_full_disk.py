"""A full disk, whatever writes: one line that names the file, and what was there is whole."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import deltamem_mlx as dm

# The system refuses files of more bytes, as a full disk does, wherever the writer is.
LIMITED = (
    "import resource, sys\n"
    "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)\n"
    "from deltamem_mlx.cli.main import main\n"
    "main()\n"
)
ROW = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}\n'
WRITERS = {
    "generate": ("generate", "-p", "hi", "-m", "2", "--memory", "{old}/m.safetensors"),
    "generate a new memory": ("generate", "-p", "hi", "-m", "2", "--memory", "{new}"),
    "remember": ("remember", "{texts}", "--memory", "{old}/m.safetensors"),
    "import": ("memories", "import", "{old}/m.safetensors"),
    "convert": ("convert", "{adapter}", "{old}/adapter", "--overwrite"),
    "train": (
        *("train", "--model", "builtin", "--data", "{data}", "--iters", "2", "--batch-size", "1"),
        *("--adapter-path", "{old}/adapter", "--overwrite"),
    ),
    "eval": ("eval", "recall", "--limit", "1", "--facts", "1", "--out", "{old}/eval"),
    "trace": ("inspect", "--trace", "{texts}", "--plot", "{old}/trace.png"),
    "bench": ("bench", "--shape", "tiny", "--only", "scan", "--rounds", "1", "--plot", "{new}.png"),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("disk")
    old = folder / "old"
    model, tokenizer = dm.load("builtin")
    session = dm.MemorySession(model, tokenizer)
    session.remember("anna lives in oslo .")
    session.save(old / "m.safetensors")
    dm.save_adapter(model, old / "adapter")
    dm.save_adapter(model, folder / "adapter")
    (folder / "notes.txt").write_text("ben is a doctor .")
    (folder / "data").mkdir()
    for name in ("train", "valid"):
        (folder / "data" / f"{name}.jsonl").write_text(ROW * 3)
    return {
        **{"old": old, "new": old / "new.safetensors", "texts": folder / "notes.txt"},
        **{"data": folder / "data", "adapter": folder / "adapter"},
    }


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 1, 700, 9000])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_line_and_loses_nothing(
    places: dict[str, Path], writer: str, room: int, tmp_path: Path
) -> None:
    before = contents(places["old"])
    words = [word.format(**places) for word in WRITERS[writer]]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        check=False,
    )
    after = contents(places["old"])
    kept = {name: data for name, data in before.items() if after.get(name) == data}
    for name in after.keys() - before.keys():
        assert not Path(name).name.startswith("."), f"{name} is left over"
        (places["old"] / name).unlink()
    if done.returncode == 0:
        assert room == 9000, done.stderr
        for name, data in before.items():
            (places["old"] / name).write_bytes(data)
        return
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert (done.returncode, len(errors)) == (1, 1), done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(r"/\S* could not be written: ", errors[0]), errors[0]
    assert kept == before, "what was there is whole"
