"""Programs under mlx.launch, on this machine."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(
    *words: str | Path, size: int = 2, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in ``size`` processes, and wait for them."""
    return subprocess.run(
        _command(words, size),
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@contextmanager
def started(*words: str | Path, size: int = 2) -> Iterator[subprocess.Popen[str]]:
    """The same without waiting; gives the launcher, which is ended at last."""
    with subprocess.Popen(
        _command(words, size),
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        try:
            yield program
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)


def _command(words: Sequence[str | Path], size: int) -> list[str]:
    program = Path(sys.executable).with_name("mlx.launch")
    if not program.exists():
        pytest.skip("mlx.launch is not installed beside this Python")
    return [str(program), "-n", str(size), "--", sys.executable, *map(str, words)]


def _environment() -> dict[str, str]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    return os.environ | {"PYTHONPATH": paths}


def ranks_of(launcher: int) -> dict[int, int]:
    """Rank → process, of what a launcher has started."""
    return dict(_ranks_below(launcher))


def _ranks_below(pid: int) -> Iterator[tuple[int, int]]:
    told = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    for line in told.stdout.splitlines():
        child, parent = map(int, line.split())
        if parent == pid:
            with suppress(OSError):
                found = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
                yield from (
                    (int(value.removeprefix(b"MLX_RANK=")), child)
                    for value in found
                    if value.startswith(b"MLX_RANK=")
                )
