"""Where the turns of a chat are kept: saved, loaded, listed; and where they cannot be."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_mlx.cli.chat.answering import Answering
from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.session import named_memory
from deltamem_mlx.files import FileChanged
from deltamem_mlx.files.places import (
    goes_by_name,
    is_name,
    memories_folder,
    memory_path,
    shown_memory,
)
from deltamem_mlx.problems import shortened

if TYPE_CHECKING:
    from deltamem_mlx.memory.shelf import ShelvedMemory

_LISTED = 20
_KEEP = "/save NAME keeps this chat as a memory of another name."


class Keeping(Answering):
    """Saves after each turn, and what `/save`, `/load` and `/memories` do."""

    unsaved = False  # what was said last is in no file, though it was to be
    asked: tuple[str, str] | None = None  # a command that is done if it comes again

    @property
    def saves(self) -> bool:
        """Whether turns are saved at all: those of a branch are not."""
        return self.memory is not None and not self.read_only and not self.branches

    def keep(self) -> None:
        """Save the memory and its last turns, if it is to be; a branch is not.

        Raises:
            OSError: If it cannot be written, or another program has changed it.
        """
        from deltamem_mlx.memory.history import HISTORY_TURNS

        if self.memory is None or not self.saves:
            return
        again, self.unsaved = self.unsaved, True
        try:
            self.session.save(self.memory, history=HISTORY_TURNS)
        except FileChanged as error:
            ways = f"/load {shlex.quote(self.name)} goes on from what is there now; {_KEEP}"
            if again:
                raise ValueError(f"Not saved to {self.name} either: {ways}") from error
            raise ValueError(
                f"{self.name} has been saved by another program since it was read, and is left as "
                f"it is there: this turn is not in it, and no later one will be. {ways}"
            ) from error
        self.unsaved = False

    def may_lose(self, name: str, argument: str = "") -> bool:
        """Ask before a command loses what could not be saved."""
        what = f"What was said last is not in {self.name}, and would be lost: {_KEEP}"
        return not self.unsaved or self.may(name, argument, what)

    def may(self, name: str, argument: str, question: str) -> bool:
        """Ask before something is lost: in a terminal there and then, else by typing it again."""
        if self.ui.interactive:
            if self.ui.confirm(f"{question} Go on?"):
                return True
            self.ui.say("nothing was done", "muted")
            return False
        if self.asked == (name, argument):
            self.asked = None
            return True
        self.asked = (name, argument)
        self.ui.say(f"{question} {f'{name} {argument}'.strip()} again does it.", "warn")
        return False

    def save(self, argument: str) -> None:
        """The memory to one of that name or to a file; everything to a folder."""
        from deltamem_mlx.memory.history import HISTORY_TURNS

        words = words_in(argument)
        if not words and self.saves and not self.unsaved:
            self.ui.say(f"{self.name} is saved after each turn; /save NAME makes another", "muted")
            return
        transcript, overwrite = "--with-transcript" in words, "--overwrite" in words
        words = [word for word in words if word not in ("--with-transcript", "--overwrite")]
        given = word(shlex.join(words), "/save NAME|PATH [--with-transcript] [--overwrite]")
        named = is_name(given)
        path = memory_path(given) if named else Path(given).expanduser()
        # The chat goes on in its own memory after a branch, which that is not to replace unasked.
        own = self.own - {self.memory} if self.branches else self.own
        if launched.first(lambda: _is_taken(path)) and path not in own and not overwrite:
            raise ValueError(
                f"{shown_memory(path)} is there already, and was left as it is. To replace it: "
                f"/save {shlex.quote(given)} --overwrite"
            )
        if named:
            launched.first(lambda: memories_folder().mkdir(parents=True, exist_ok=True, mode=0o700))
        alone = path.suffix.lower() == ".safetensors"
        text = json.dumps(self.session.messages, ensure_ascii=False)
        self.session.save(
            path,
            note=text if transcript and alone else None,
            history=HISTORY_TURNS if named else None,
        )
        self.own.add(path)
        self.unsaved = False
        what = "the memory" if alone else "memory, context and text"
        with_text = " with text" if transcript and alone else ""
        where = f"as {given}: /load {given} goes on in it" if named else f"to {path}"
        if named and (here := Path(given)).exists():
            where += f"; the {'folder' if here.is_dir() else 'file'} here is ./{given}"
        self.ui.done("saved", f"{what}{with_text} {where}")

    def load(self, argument: str) -> None:
        """Go on in what was saved, and save there: the memory that is left stays as it was."""
        path = launched.first(lambda: _memory_or_path(word(argument, "/load NAME|PATH")))
        if not self.may_lose("/load", argument):
            return
        settings = self.settings
        if launched.first(path.is_dir):
            settings = {"draft_model": settings.get("draft_model")}
        model, tokenizer = self.session.model, self.session.tokenizer
        self.session = type(self.session).restore(path, model, tokenizer, **settings)
        self.branches, self.question = [], None
        self.own = {path}  # what is saved elsewhere now would be another memory
        where = self._save_to(path)
        stats, name = self.session.stats(), shown_memory(path)
        written, context = stats["tokens_written"], stats["context_tokens"]
        self.ui.done(
            "loaded", f"{name}: {written:,} tokens written, {context:,} in the context; {where}"
        )

    def _save_to(self, path: Path) -> str:
        """Save there from now on, if turns are saved at all; returns what is said of it."""
        if self.memory is None and not goes_by_name(path):
            return "turns are not saved (no --memory): /save does"
        left, name, self.memory, self.name = self.memory, self.name, path, shown_memory(path)
        lost, self.unsaved = self.unsaved, False
        if self.read_only:
            return "turns are not saved (--read-only)"
        if lost:
            return f"saved to it from now on; what was not saved to {name} is gone"
        same = left is None or left.resolve() == path.resolve()
        return "saved to it from now on" + ("" if same else f"; {name} stays as it was")

    def memories(self, _: str) -> None:
        """List the user's memories, the last used first."""
        from deltamem_mlx.memory.shelf import MemoryShelf

        found = MemoryShelf().all()
        if not found:
            self.ui.say("There are none yet: /save NAME makes one of this chat's.", "muted")
            return
        rows = [["memory", "tokens", "last used", ""]]
        rows += [self._row(memory) for memory in found[:_LISTED]]
        self.ui.table(rows, left=(0, 3))
        rest = len(found) - _LISTED
        more = f"{rest} more: deltamem-mlx memories. " if rest > 0 else ""
        self.ui.say(f"{more}/load NAME goes on in one.", "muted")

    def _row(self, memory: "ShelvedMemory") -> list[str]:
        used = memory.used.astimezone().strftime("%Y-%m-%d %H:%M")
        written = f"{sum(memory.file.tokens_written):,}" if memory.file else "?"
        here = self.memory is not None and memory.path.resolve() == self.memory.resolve()
        return [memory.name, written, used, "this one" if here else ""]


def words_in(argument: str) -> list[str]:
    """The words of an argument: what has spaces in it stands in quotes; an apostrophe is none.

    Raises ValueError for a quote that nothing closes.
    """
    words = argument.split()
    quoted = any(one.startswith(("'", '"')) for one in words)
    if not quoted:  # or two apostrophes would be a pair of quotes
        argument = re.sub(r"(?<=\w)'(?=\w)", r"\'", argument)
    try:
        return shlex.split(argument)
    except ValueError:
        if quoted:
            raise ValueError(f"A quote is not closed: {shortened(argument)}") from None
        return words


def word(argument: str, usage: str) -> str:
    """The one word that a command takes; raises ValueError for none or several."""
    words = words_in(argument)
    if len(words) != 1:
        raise ValueError(f"Expected {usage}.")
    return words[0]


def _is_taken(path: Path) -> bool:
    """Whether something would be replaced: a file, or the folder of a session."""
    return path.is_file() or (path / "session.json").is_file()


def _memory_or_path(text: str) -> Path:
    from deltamem_mlx.memory.shelf import MemoryShelf

    path = named_memory(text) or Path(text).expanduser()
    if is_name(text) and not path.exists():
        return MemoryShelf().path(text)  # there is none: what is like it is named
    return path
