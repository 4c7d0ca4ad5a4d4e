"""Processes of Python that begin with the heavy libraries imported, by forking.

Most of what `deltamem-mlx` takes for a short command is importing transformers: about 2 seconds of
CPU. What is imported there is neither this package nor anything that has started a thread, so that
a process forked from there does what a fresh one does. On Linux only; elsewhere all are fresh.
"""

import atexit
import fcntl
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).parent.parent.parent
# What libraries read when they are imported; another value needs a fresh process.
_READ_EARLY = ("HF_", "HUGGINGFACE", "MLX_", "TRANSFORMERS_", "LD_", "PYTHON", "OPENBLAS", "OMP_")
_READ_LATER = {"PYTHONPATH", "MLX_RANK", "MLX_HOSTFILE"}  # the last two, where a model is spread
COMMAND = ("-m", "deltamem_mlx")


class Forked:
    """A process.

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
            with suppress(ProcessLookupError):  # it may have ended by now
                os.kill(self.pid, number)


class Fresh(subprocess.Popen):
    """The same, not forked."""

    @property
    def running(self) -> bool:
        return self.poll() is None

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.send_signal(number)


class Piped:
    """A process of either kind whose words can be read.

    Attributes:
        stdout, stderr (TextIO): What it says.
    """

    def __init__(self, process: Forked | Fresh, stdout: int, stderr: int):
        self.process = process
        self.stdout, self.stderr = open(stdout), open(stderr)  # noqa: SIM115

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode if not self.process.running else None

    def wait(self, timeout: float | None = None) -> int:
        return self.process.wait(timeout)

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.kill(number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for its end; returns what was not read yet."""
        with ThreadPoolExecutor(2) as threads:
            said = [threads.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except BaseException:
                self.kill()
                raise
            return said[0].result(), said[1].result()

    def close(self) -> None:
        self.kill()
        self.process.wait()
        self.stdout.close()
        self.stderr.close()


class Nursery:
    """The process that others are forked from; it begins with the first of them."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._env = dict(os.environ)

    @contextmanager
    def piped(
        self,
        *words: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: str | Path = ".",
        stderr: int | None = None,
    ) -> Iterator[Piped]:
        """Python with these words, no input and pipes; it is killed at last.

        ``env`` is added to the environment; what it says on ``stderr`` goes to that file, if any.
        """
        env = os.environ | {"PYTHONPATH": str(ROOT)} | (env or {})
        (out, its_out), (err, its_err) = os.pipe(), os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        files = (nothing, its_out, its_err if stderr is None else stderr)
        try:
            process = self.start([*map(str, words)], env=env, cwd=cwd, files=files)
        finally:
            for file in (nothing, its_out, its_err):
                os.close(file)
        with closing(Piped(process, out, err)) as piped:
            yield piped

    def start(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str | Path,
        files: tuple[int, int, int],
        terminal: bool = False,
    ) -> Forked | Fresh:
        """Start Python with these words and files as its streams; a terminal's are its own."""
        if not self._has(env):
            return Fresh(
                [sys.executable, *words],
                **dict(zip(("stdin", "stdout", "stderr"), files, strict=True)),
                env=env,
                cwd=cwd,
                preexec_fn=partial(_own_terminal, files[0]) if terminal else None,
            )
        if self._server is None:
            self._begin()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asked = {"words": [*words], "env": dict(env), "cwd": str(cwd), "tty": terminal}
        with theirs:
            socket.send_fds(self._socket, [json.dumps(asked).encode()], [*files, theirs.fileno()])
            pid = json.loads(ours.recv(1 << 10))
        return Forked(pid, ours)

    def _has(self, env: Mapping[str, str]) -> bool:
        """Whether a process with this environment can be forked."""
        names = {n for n in {*env, *self._env} if n.startswith(_READ_EARLY)} - _READ_LATER
        same = all(env.get(name) == self._env.get(name) for name in names)
        ours = env.get("PYTHONPATH", "").split(os.pathsep)[0] == str(ROOT)
        return sys.platform == "linux" and same and ours

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


def _serve(channel: socket.socket) -> list[str]:
    """Fork for everybody who asks; returns in the processes that were asked for, their words."""
    import mlx_lm  # noqa: F401
    import prompt_toolkit.shortcuts  # noqa: F401
    import pydantic  # noqa: F401
    import rich.markdown
    import rich.progress  # noqa: F401
    import safetensors.numpy  # noqa: F401
    import typer  # noqa: F401
    from transformers import AutoTokenizer, PreTrainedTokenizer  # noqa: F401

    gc.freeze()  # nobody who is forked looks through all of this, and gets pages of its own by that
    while True:
        data, files, *_ = socket.recv_fds(channel, 1 << 20, 4)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG if data else 0)[0]:
                pass
        if not data:
            os._exit(0)
        if os.fork() == 0:
            channel.close()
            asked = json.loads(data)
            _nurse(asked, files)
            return asked["words"]
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
    own = asked["env"]["PYTHONPATH"].split(os.pathsep)
    sys.path[:] = [asked["cwd"], *own, *(path for path in sys.path[1:] if path not in own)]


def _run(words: list[str]) -> None:
    """What `python` does with these words."""
    how, *rest = words
    if how == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(rest[0], {"__name__": "__main__"})
    else:
        sys.argv[:] = words
        sys.path[0] = str(Path(how).parent)
        runpy.run_path(how, run_name="__main__")


def _run_and_end(words: list[str]) -> NoReturn:
    """The same to its end: as Python ends, but that it does not take all its objects apart."""
    code: object = 0
    try:
        _run(words)
    except SystemExit as end:
        code = end.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        code = 120
    os._exit(code & 0xFF)


if __name__ == "__main__":
    _run_and_end(_serve(socket.socket(fileno=int(sys.argv[1]))))
