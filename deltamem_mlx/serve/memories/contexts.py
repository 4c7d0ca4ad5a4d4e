"""Contexts of memories in a folder, so that a server that begins again need not feed them again.

They are written by a thread of their own once a memory has been quiet for a moment: an answer never
waits for it. A context can always be made anew, so one that is lost costs time and nothing else.
"""

import logging
import os
import re
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from ...files import expanded, locked_folder, write_atomically
from ...files.writing import remove_leftovers
from ...memory.contents import MemoryFile
from ...session.conversation import Conversation
from ..provider import ServedPair
from .context_file import ContextTerms, Misfit, identity, read_context, write_context

log = logging.getLogger(__name__)
QUIET = 1.0  # seconds
_SUFFIX = ".safetensors"
# What else lies in the folder is not the server's.
_OURS = re.compile(rf"context-([0-9a-f]{{64}}){re.escape(_SUFFIX)}")
_LEFTOVER = re.compile(rf"\.context-([0-9a-f]{{64}})-\d+-[0-9a-f]{{8}}{re.escape(_SUFFIX)}")


class _Waiting(NamedTuple):
    """A context that is to be written, and when."""

    due: float
    saved: MemoryFile
    talk: Conversation


class _Asked(NamedTuple):
    """A context that a request waits for."""

    found: Future[Conversation | None]
    id: str
    saved: MemoryFile


class ContextFolder:
    """The files of contexts, at most so many bytes of them: the least recently used go first.

    Args:
        path (Path): The folder, made if it is not there.
        pair (ServedPair): The model.
        budget (int): Bytes of all files.
        terms (ContextTerms): What a context that is read again is to be.

    Attributes:
        restored (int): How many were read and gone on from.

    Raises:
        FolderInUse: If another server has the folder.
        OSError: If it cannot be made.
    """

    def __init__(self, path: Path, pair: ServedPair, budget: int, terms: ContextTerms):
        self._folder, self._pair, self._budget, self._terms = expanded(path), pair, budget, terms
        self._model = identity(pair)
        self._lock = ExitStack()
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock.enter_context(locked_folder(self._folder, "a server"))
        for id, _ in self._named(_LEFTOVER):
            remove_leftovers(self._path(id))
        # By id, the least recently used first.
        found = [(path.stat(), id) for id, path in self._named(_OURS)]
        self._sizes = {id: at.st_size for at, id in sorted(found, key=lambda f: f[0].st_mtime_ns)}
        self._disk = threading.RLock()  # held while a file is written, read or removed
        self._news = threading.Condition()
        self._waiting: dict[str, _Waiting] = {}
        self._writing = ""  # the id of the last of them
        self._asked: deque[_Asked] = deque()
        self._ending = False
        self.restored = 0
        self._trim(0)
        self._writer = threading.Thread(target=self._work, daemon=True)
        self._writer.start()

    def close(self) -> None:
        """Write what waits, and let other servers have the folder."""
        with self._news:
            self._ending = True
            self._news.notify_all()
        self._writer.join()
        self._lock.close()

    def totals(self) -> dict[str, int]:
        """How many files there are, how large they are, how many were gone on from."""
        with self._disk:
            sizes = list(self._sizes.values())
        return {"files": len(sizes), "bytes": sum(sizes), "restored": self.restored}

    def ids(self) -> set[str]:
        """Of all memories whose contexts are in files, or are to be."""
        with self._disk, self._news:
            return {*self._sizes, *self._waiting}

    def keep(self, id: str, saved: MemoryFile, talk: Conversation) -> None:
        """Write a context as soon as its memory is quiet."""
        with self._news:
            self._waiting[id] = _Waiting(time.monotonic() + QUIET, saved, talk)
            self._news.notify_all()

    def forget(self, id: str) -> None:
        """Remove the context of a memory: its file is gone when this returns."""
        with self._news:
            self._waiting.pop(id, None)
            if id not in self._sizes and id != self._writing:
                return  # who begins a memory does not wait until another's context is written
        with self._disk:
            self._remove(id)

    def read(self, id: str, saved: MemoryFile) -> Conversation | None:
        """The conversation of a memory with its context; None: there is none that fits.

        One that does not fit, or is damaged, is removed.
        """
        with self._news:
            if id not in self._sizes or self._ending:
                return None
            asked = _Asked(Future(), id, saved)
            self._asked.append(asked)
            self._news.notify_all()
        return asked.found.result()

    def _work(self) -> None:
        """The thread: MLX keeps streams for each that uses it, so one reads and writes."""
        while (task := self._task()) is not None:
            with self._disk:
                if isinstance(task, _Asked):
                    task.found.set_result(self._read(task.id, task.saved))
                else:
                    with self._news:
                        waiting, self._writing = self._waiting.pop(task, None), task
                    if waiting is not None:  # not forgotten meanwhile
                        self._write(task, waiting.saved, waiting.talk)
        mx.clear_streams()

    def _task(self) -> "_Asked | str | None":
        """What to do next, once there is something: a context to read, or the id of one to write;
        None: nothing more."""
        with self._news:
            while True:
                if self._asked:
                    return self._asked.popleft()
                if id := self._next():
                    return id
                if self._ending:
                    return None
                first = min((one.due for one in self._waiting.values()), default=None)
                self._news.wait(None if first is None else max(0.0, first - time.monotonic()))

    def _read(self, id: str, saved: MemoryFile) -> Conversation | None:
        if id not in self._sizes:
            return None
        path = self._path(id)
        try:
            talk = read_context(path, self._pair, saved, self._model, self._terms)
            os.utime(path)
        except Exception as error:  # whatever a file may hold
            why = "does not fit its memory" if isinstance(error, Misfit) else "is damaged"
            about = {"memory": id[:12], "error": type(error).__name__}
            log.warning("a context that %s was dropped", why, extra=about)
            self._remove(id)
            return None
        self._sizes[id] = self._sizes.pop(id)
        self.restored += 1
        return talk

    def _next(self) -> str | None:
        now = time.monotonic()
        due = (id for id, one in self._waiting.items() if one.due <= now or self._ending)
        return next(due, None)

    def _write(self, id: str, saved: MemoryFile, talk: Conversation) -> None:
        path, size = self._path(id), sum(c.nbytes for c in talk.context.cache)
        self._remove(id)  # what it holds is older than the memory
        if not talk.context.tokens or size > self._budget:
            return
        self._trim(size)
        try:
            write_atomically(path, lambda p: write_context(p, talk, saved, self._model), 0o600)
            self._sizes[id] = path.stat().st_size
        except Exception as error:
            about = {"memory": id[:12], "error": type(error).__name__}
            log.warning("a context could not be saved", extra=about)
        self._trim(0)

    def _trim(self, coming: int) -> None:
        while self._sizes and sum(self._sizes.values()) + coming > self._budget:
            self._remove(next(iter(self._sizes)))

    def _remove(self, id: str) -> None:
        if self._sizes.pop(id, None) is not None:
            with suppress(OSError):
                self._path(id).unlink(missing_ok=True)

    def _named(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, Path]]:
        for path in self._folder.iterdir():
            if (found := pattern.fullmatch(path.name)) and path.is_file():
                yield found[1], path

    def _path(self, id: str) -> Path:
        return self._folder / f"context-{id}{_SUFFIX}"
