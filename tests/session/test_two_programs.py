"""Two programs that go on from one memory: what was acknowledged is never lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from forked import Nursery

import deltamem_mlx as dm
from deltamem_mlx.memory.file import read_memory

SAVING = """
import json, sys
from pathlib import Path
import deltamem_mlx as dm
from deltamem_mlx.files import FileChanged
path, times = Path(sys.argv[1]), int(sys.argv[2])
model, tokenizer = dm.load("builtin")
written = refused = 0
for _ in range(times):
    while True:
        session = dm.MemorySession(model, tokenizer)
        if path.exists():
            session = dm.MemorySession.restore(path, model, tokenizer)
        tokens = session.remember("anna lives in oslo .")
        try:
            session.save(path)
        except FileChanged:
            refused += 1
            continue
        written += tokens
        break
print(json.dumps([written, refused]))
"""
GENERATING = """
import json, subprocess, sys
path, times = sys.argv[1:]
before = 0
written = refused = 0
for _ in range(int(times)):
    done = subprocess.run(
        [sys.executable, "-m", "deltamem_mlx", "generate", "--memory", path, "--json",
         "--prompt", "hi", "--remember", path + ".txt"],
        capture_output=True, text=True,
    )
    if done.returncode:
        assert "by another program" in done.stderr, done.stderr
        refused += 1
    else:
        written += 1
print(json.dumps([written, refused]))
"""


def run(code: str, path: Path, times: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(times)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MLX_ENABLE_TF32": "0"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("times", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_two_sessions_that_save_one_file_lose_nothing(
    tmp_path: Path, times: int, nursery: Nursery
) -> None:
    path = tmp_path / "m.safetensors"
    words = ("-c", SAVING, path, str(times))
    with nursery.piped(*words) as one, nursery.piped(*words) as other:
        said = [json.loads(process.communicate()[0]) for process in (one, other)]
    assert read_memory(path).tokens_written == [sum(written for written, _ in said)]


@pytest.mark.slow
def test_generate_and_a_session_that_save_one_file_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    (tmp_path / "m.safetensors.txt").write_text("ben is a doctor .")
    model, tokenizer = dm.load("builtin")
    one = dm.MemorySession(model, tokenizer)
    one.remember("ben is a doctor .")
    one.forget_context()
    before = one.stats()["tokens_written"]
    one.ask("hi")
    first = one.stats()["tokens_written"]
    assert first > before
    saving, generating = run(SAVING, path, 60), run(GENERATING, path, 20)
    written, _ = json.loads(saving.communicate()[0])
    times, refused = json.loads(generating.communicate()[0])
    assert times + refused == 20
    total = read_memory(path).tokens_written[0]
    # What an answer has said decides its length: each kept turn wrote what was told, at least.
    assert total >= written + times * before
    if not times:
        assert total == written


def chatted(path: Path, times: int) -> subprocess.Popen[str]:
    """A chat that is told something so many times, and loads what is saved before each."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deltamem_mlx", "chat", "--memory", str(path), "-m", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdin.write(f"/load {path}\nben is a doctor .\n" * times + "exit\n")
    return process


@pytest.mark.slow
def test_chat_and_a_session_that_save_one_file_lose_nothing(tmp_path: Path) -> None:
    path, alone = tmp_path / "m.safetensors", tmp_path / "alone.safetensors"
    dm.MemorySession(*dm.load("builtin")).save(alone)
    dm.MemorySession(*dm.load("builtin")).save(path)
    assert chatted(alone, 1).communicate()[1].count("by another program") == 0
    each = read_memory(alone).tokens_written[0]
    saving, chatting = run(SAVING, path, 400), chatted(path, 200)
    refused = chatting.communicate()[1].count("by another program")
    written, _ = json.loads(saving.communicate()[0])
    assert 0 < refused < 200
    assert read_memory(path).tokens_written == [written + (200 - refused) * each]


def test_generate_says_that_its_turn_was_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    model, tokenizer = dm.load("builtin")
    mine = dm.MemorySession(model, tokenizer)
    theirs = dm.MemorySession(model, tokenizer)
    mine.remember("anna lives in oslo .")
    theirs.remember("ben is a doctor .")
    mine.save(path)
    with pytest.raises(OSError, match=r"m.safetensors has been saved by another program"):
        theirs.save(path)
    again = dm.MemorySession.restore(path, model, tokenizer)
    again.remember("ben is a doctor .")
    again.save(path)
    with pytest.raises(OSError, match="by another program"):
        mine.save(path)
    assert read_memory(path).tokens_written == [again.stats()["tokens_written"]]
