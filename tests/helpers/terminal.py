"""A terminal with a screen, in which `deltamem-mlx` runs."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pexpect
import pyte
from conftest import ROOT


class Terminal:
    """A screen of its own, and the command in it.

    Args:
        arguments (Sequence): Of `deltamem-mlx`.
        cwd (Path): Where it runs.
        columns, rows (int): Size of the screen.
    """

    def __init__(
        self, arguments: Sequence[str | Path], cwd: Path, columns: int = 90, rows: int = 60
    ):
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        # No terminal answers here when it is asked where its cursor is.
        env = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = pexpect.spawn(
            sys.executable,
            ["-m", "deltamem_mlx", *map(str, arguments)],
            cwd=str(cwd),
            env=os.environ | env,
            dimensions=(rows, columns),
        )

    @property
    def shown(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def type(self, keys: str) -> None:
        data = keys.encode()
        while data:  # a terminal takes so much at once
            data = data[os.write(self._process.child_fd, data[:1024]) :]
            self._read(0.01)

    def paste(self, text: str) -> None:
        """As a terminal sends what is pasted."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def until(self, text: str, times: int = 1, seconds: float = 60) -> str:
        """Wait until a text is on the screen, so often; returns all that is."""
        ends = time.monotonic() + seconds
        while self.shown.count(text) < times:
            assert time.monotonic() < ends, f"no {text!r} in:\n{self.shown}"
            self._read()
        return self.shown

    def settle(self) -> str:
        """Wait until nothing more is written for a moment; returns what is shown."""
        while self._read():
            pass
        return self.shown

    def _read(self, seconds: float = 0.5) -> bool:
        try:
            self._stream.feed(self._process.read_nonblocking(1 << 16, seconds))
        except pexpect.TIMEOUT:
            return False
        except pexpect.EOF as error:
            raise AssertionError(f"it ended:\n{self.shown}") from error
        return True

    def resize(self, columns: int, rows: int = 60) -> None:
        self._process.setwinsize(rows, columns)
        self._screen.resize(rows, columns)

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal makes a signal of it."""
        self._process.kill(signal.SIGINT)

    def end(self) -> int | None:
        """Wait for the command to end; returns its exit code."""
        while self._process.isalive():
            try:
                self._stream.feed(self._process.read_nonblocking(1 << 16, 60))
            except pexpect.EOF:
                break
        self._process.close()
        return self._process.exitstatus

    def close(self) -> None:
        self._process.close(force=True)
