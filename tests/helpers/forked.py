"""Processes of `deltamem-mlx` that begin with the heavy libraries imported, by forking.

Most of what a short command takes is importing transformers: about 2 seconds of CPU. What is
imported there is neither this package nor anything that has started a thread, so that a process
forked from there does what a fresh one does. On Linux only; elsewhere all processes are fresh.
"""

import fcntl
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import termios
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
# What libraries read when they are imported; another value needs a fresh process.
_READ_EARLY = ("HF_", "HUGGINGFACE", "MLX_", "TRANSFORMERS_", "LD_", "PYTHON", "OPENBLAS", "OMP_")


class Forked:
    """A process of the command.

    Attributes:
        pid (int): Its id.
        returncode (int): Once it has ended: its exit code, or the signal that ended it, negated.
    """

    def __init__(self, pid: int, ends: socket.socket):
        self.pid, self._ends, self.returncode = pid, ends, None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises TimeoutError after so many seconds."""
        if self.returncode is None:
            self._ends.settimeout(timeout)
            self.returncode = json.loads(self._ends.recv(1 << 10))
            self._ends.close()
        return self.returncode

    @property
    def running(self) -> bool:
        try:
            self.wait(0)
        except (TimeoutError, BlockingIOError):
            return True
        return False

    def kill(self, number: int = signal.SIGKILL) -> None:
        if self.running:
            os.kill(self.pid, number)


class Fresh(subprocess.Popen):
    """The same, not forked."""

    @property
    def running(self) -> bool:
        return self.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.send_signal(number)


class Nursery:
    """The process that others are forked from; it begins with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._env = dict(os.environ)

    def start(
        self,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | Path,
        files: tuple[int, int, int],
        terminal: bool = False,
    ) -> Forked | Fresh:
        """Start `deltamem-mlx` with these files as its streams; a terminal's are its own."""
        if not self._has(env):
            return Fresh(
                [sys.executable, "-m", "deltamem_mlx", *arguments],
                **dict(zip(("stdin", "stdout", "stderr"), files, strict=True)),
                env=env,
                cwd=cwd,
                preexec_fn=partial(_own_terminal, files[0]) if terminal else None,
            )
        if self._server is None:
            self._begin()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"arguments": [*arguments], "env": dict(env), "cwd": str(cwd), "tty": terminal}
        with theirs:
            socket.send_fds(self._socket, [json.dumps(asked).encode()], [*files, theirs.fileno()])
            pid = json.loads(ours.recv(1 << 10))
        return Forked(pid, ours)

    def _has(self, env: Mapping[str, str]) -> bool:
        """Whether a process with this environment can be forked."""
        names = {n for n in {*env, *self._env} if n.startswith(_READ_EARLY) and n != "PYTHONPATH"}
        same = all(env.get(name) == self._env.get(name) for name in names)
        return sys.platform == "linux" and same and env.get("PYTHONPATH") == str(ROOT)

    def _begin(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=self._env | {"PYTHONPATH": str(ROOT)},
            )

    def close(self) -> None:
        """No process can be had any more."""
        if self._server is not None:
            self._socket.close()
            self._server.wait()


def _own_terminal(file: int) -> None:
    os.setsid()
    fcntl.ioctl(file, termios.TIOCSCTTY, 0)


def _serve(channel: socket.socket) -> None:
    """Fork for everybody who asks; returns in the processes that were asked for."""
    import mlx_lm  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizer  # noqa: F401

    while True:
        data, files, *_ = socket.recv_fds(channel, 1 << 20, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG if data else 0)[0]:
                pass
        if not data:
            os._exit(0)
        if os.fork() == 0:
            channel.close()
            _nurse(json.loads(data), files)
            return
        for file in files:
            os.close(file)


def _nurse(asked: dict, files: list[int]) -> None:
    """Fork once more, and wait for that process; returns in it."""
    *streams, told = files
    reply = socket.socket(fileno=told)
    pid = os.fork()
    if pid:
        for stream in streams:
            os.close(stream)
        reply.send(json.dumps(pid).encode())
        _, status = os.waitpid(pid, 0)
        reply.send(json.dumps(os.waitstatus_to_exitcode(status)).encode())
        os._exit(0)
    reply.close()
    if asked["tty"]:
        _own_terminal(streams[0])
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    kinds = [(s.encoding, s.errors) for s in (sys.stdin, sys.stdout, sys.stderr)]
    for number, (name, (encoding, errors)) in enumerate(
        zip(("stdin", "stdout", "stderr"), kinds, strict=True)
    ):
        mode = "r" if number == 0 else "w"
        stream = open(number, mode, encoding=encoding, errors=errors, closefd=False)  # noqa: SIM115
        stream.reconfigure(line_buffering=number == 2 or asked["tty"])
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    sys.path[0] = asked["cwd"]
    sys.argv[:] = ["deltamem-mlx", *asked["arguments"]]


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    runpy.run_module("deltamem_mlx", run_name="__main__", alter_sys=True)
