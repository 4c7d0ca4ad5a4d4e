"""Commands that write a memory, killed at any moment: nothing that was acknowledged is lost."""

import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.memory.shelf import MemoryShelf

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "deltamem_mlx"]
MOST = 4.0  # seconds in which a command has come to its end, more or less


def start(folder: Path, *words: str, said: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [*COMMAND, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )
    if process.stdin is not None:
        process.stdin.write(said)
        process.stdin.close()
        process.stdin = None
    return process


def written(file: Path) -> int:
    """Tokens in a memory file, which has to be whole; 0: there is none yet."""
    return read_memory(file).tokens_written[0] if file.exists() else 0


def generate(folder: Path) -> subprocess.Popen[str]:
    return start(folder, "generate", "--memory", "me.safetensors", "anna lives in oslo .")


def chat(folder: Path) -> subprocess.Popen[str]:
    said = "anna lives in oslo .\nben is a doctor .\n"
    return start(folder, "chat", "--memory", "me.safetensors", said=said)


def remember(folder: Path) -> subprocess.Popen[str]:
    return start(folder, "remember", "facts.txt", "--memory", "me.safetensors")


@pytest.mark.parametrize("command", [generate, chat, remember])
def test_killed_at_ten_moments_a_memory_is_whole_and_never_goes_back(
    tmp_path: Path, command: Callable[[Path], subprocess.Popen[str]]
) -> None:
    """`train` and `serve` have tests of their own, of twenty kills and of twelve."""
    moments, file = random.Random(command.__name__), tmp_path / "me.safetensors"
    (tmp_path / "facts.txt").write_text("anna lives in oslo .\n" * 40)
    assert command(tmp_path).wait(120) == 0
    took, before, kills = MOST, written(file), 0
    assert before > 0
    for _ in range(10):
        process = command(tmp_path)
        began = time.monotonic()
        try:
            out, _ = process.communicate(timeout=moments.uniform(0.4, 1.0) * took)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            out, _ = process.communicate()
            kills += 1
        else:
            took = time.monotonic() - began
        after = written(file)
        assert after >= before
        if process.returncode == 0 or re.search(r"\bwritten\b|\bSaved\b", out or ""):
            assert after > before  # it has said so
        before = after
    assert kills > 2
    assert command(tmp_path).wait(120) == 0 and written(file) > before
    assert MemoryShelf(tmp_path).names() == ["me"]
    assert not list(tmp_path.glob(".me-*"))
