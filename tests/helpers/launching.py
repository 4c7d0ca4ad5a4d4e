"""Programs under mlx.launch, on this machine."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from forked import Nursery, Piped

ROOT = Path(__file__).parents[2]


def launch(
    nursery: Nursery, *words: str | Path, size: int = 2, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run Python with these words in ``size`` processes, and wait for them.

    What mlx.launch does, without it: that takes a processor for itself while it waits.
    """
    with apart(nursery, *words, size=size) as ranks, ThreadPoolExecutor(size) as threads:
        said = [*threads.map(lambda rank: rank.communicate(timeout), ranks)]
        code = next((rank.returncode for rank in ranks if rank.returncode), 0)
    return subprocess.CompletedProcess(words, code, *map("".join, zip(*said, strict=True)))


@contextmanager
def apart(nursery: Nursery, *words: str | Path, size: int = 2) -> Iterator[list[Piped]]:
    """The same without waiting: none of the processes is ended but by itself, until the last."""
    first = free_ports(size)
    with tempfile.NamedTemporaryFile("w") as hosts, ExitStack() as stack:
        json.dump([[f"127.0.0.1:{first + rank}"] for rank in range(size)], hosts)
        hosts.flush()
        env = _environment() | {"MLX_HOSTFILE": hosts.name}
        yield [
            stack.enter_context(nursery.piped(*words, env=env | {"MLX_RANK": str(rank)}))
            for rank in range(size)
        ]


@contextmanager
def started(
    *words: str | Path, size: int = 2, fused: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """The same by mlx.launch, and without waiting; gives the launcher, which is ended at last.

    Only if ``fused``, with the kernels that mx.compile makes: they may have to be built first.
    """
    with subprocess.Popen(
        _command(words, size),
        env=_environment() | ({} if fused else {"MLX_DISABLE_COMPILE": "1"}),
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
    ports = ["--starting-port", str(free_ports(size))]
    return [str(program), "-n", str(size), *ports, "--", sys.executable, *map(str, words)]


def free_ports(count: int) -> int:
    """The first of so many free ports in a row: other launches take others.

    Below those that the system deals out, which might be taken before they are used.
    """
    for first in random.sample(range(12_000, 32_000, 10), 100):
        with ExitStack() as stack, suppress(OSError):
            for port in range(first, first + count):
                taken = stack.enter_context(socket.socket())
                taken.bind(("127.0.0.1", port))
            return first
    raise OSError("found no free ports in a row")


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
