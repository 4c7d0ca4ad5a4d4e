"""A terminal with a screen, in which `deltamem-mlx` runs."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pyte
from conftest import ROOT
from forked import COMMAND, Nursery


class Terminal:
    """A screen of its own, and the command in it.

    Args:
        arguments (Sequence): Of `deltamem-mlx`.
        cwd (Path): Where it runs.
        columns, rows (int): Size of the screen.
        nursery (Nursery): Where its process comes from.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        cwd: Path,
        nursery: Nursery,
        columns: int = 90,
        rows: int = 60,
    ):
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        # No terminal answers here when it is asked where its cursor is.
        env = {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._file, its = pty.openpty()
        self._set_size(columns, rows)
        words = [*COMMAND, *map(str, arguments)]
        self._process = nursery.start(
            words, env=os.environ | env, cwd=cwd, files=(its, its, its), terminal=True
        )
        os.close(its)

    @property
    def shown(self) -> str:
        """What is on the screen."""
        return "\n".join(line.rstrip() for line in self._screen.display).rstrip()

    def type(self, keys: str) -> None:
        data = keys.encode()
        while data:  # a terminal takes so much at once
            data = data[os.write(self._file, data[:1024]) :]
            self._read(0.01)

    def paste(self, text: str) -> None:
        """As a terminal sends what is pasted."""
        self.type(f"\x1b[200~{text}\x1b[201~")

    def until(self, text: str, times: int = 1) -> str:
        """Wait until a text is on the screen, so often; returns all that is."""
        self._wait(lambda: self.shown.count(text) >= times, text)
        return self.shown

    def until_gone(self, text: str) -> None:
        """Wait until a text is not on the screen any more."""
        self._wait(lambda: text not in self.shown, f"end of {text}")

    def until_match(self, pattern: str) -> re.Match[str]:
        """Wait until what is on the screen matches somewhere."""
        self._wait(lambda: re.search(pattern, self.shown), pattern)
        found = re.search(pattern, self.shown)
        assert found is not None
        return found

    def _wait(self, found: Callable[[], object], what: str) -> None:
        ends = time.monotonic() + 300
        while not found():
            assert time.monotonic() < ends, f"no {what!r} in:\n{self.shown}"
            self._read()

    def settle(self) -> str:
        """Wait until nothing more is written for a moment; returns what is shown."""
        while self._read():
            pass
        return self.shown

    def _read(self, seconds: float = 0.5) -> bool:
        if not select.select([self._file], [], [], seconds)[0]:
            return False
        try:
            self._stream.feed(os.read(self._file, 1 << 16))
        except OSError as error:  # nobody has the other end
            raise AssertionError(f"it ended:\n{self.shown}") from error
        return True

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def resize(self, columns: int, rows: int = 60) -> None:
        self._set_size(columns, rows)
        self._screen.resize(rows, columns)

    def interrupt(self) -> None:
        """Ctrl-C, as the terminal makes a signal of it."""
        self._process.kill(signal.SIGINT)

    def end(self) -> int:
        """Wait for the command to end; returns its exit code."""
        while self._process.running:
            with suppress(AssertionError):
                self._read()
        with suppress(AssertionError):  # what it said last
            while self._read(0):
                pass
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()
        self._process.wait(300)
        os.close(self._file)
