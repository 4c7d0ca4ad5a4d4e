"""How `chat` looks: mlx-lm's own header, prompt line and colours, and plain text in a pipe."""

import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from mlx_lm.cli_ui import make_console, print_header_panel
from mlx_lm.generate import GenerationResponse
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.theme import Theme

from deltamem_mlx.cli.chat.line_editor import QUOTES, Typed, opens_quotes, unquoted
from deltamem_mlx.cli.frame.parse import STANDARD_INPUT
from deltamem_mlx.files import decoded

if TYPE_CHECKING:
    from deltamem_mlx.cli.chat.markdown import MarkdownAnswer
    from deltamem_mlx.session.stats import Stats

KEYS = {"q": "exit", "r": "reset", "h": "help"}
COMMANDS = {
    "/remember FILE": "write files or folders into the memory",
    "/forget": "drop the context and keep the memory",
    "/save NAME": "the memory by a name; FILE.safetensors; or all to ./FOLDER; --with-transcript",
    "/load NAME": "go on in another memory; FILE.safetensors; or a saved ./FOLDER",
    "/memories": "list your memories",
    "/fork": "branch off; /back returns to where you were",
    "/stats": "how much was said and written; --numbers for each layer",
    "/probe QUESTION": "ask the memory alone, and the model without; nothing is learnt",
    "/compare": "the last question without memory, or /compare QUESTION",
    "/undo": "take the last turn back, or /undo N",
    "/redo": "put back all that was taken back since the last turn",
    "/retry": "answer the last question anew",
    "/temp NUMBER": "how much answers vary: 0 not at all, 0.7 somewhat",
    "/edit TEXT": "ask this instead of the last question",
    "/reset": "begin anew, as r",
    "/exit": "leave, as q",
}
# What is less is no figure: a prompt of some words, and the RAM of a tiny model.
LONG_PROMPT, LARGE_GB = 128, 0.1
# Control characters: an answer could else clear the screen, or worse.
_HARMLESS = dict.fromkeys((*range(9), *range(11, 32), *range(127, 160)))
STYLES = ("strong", "label", "muted", "accent", "border", "good", "warn")


def _plain_console() -> Console:
    theme = Theme({f"ui.{name}": "none" for name in STYLES})
    return Console(stderr=True, theme=theme, highlight=False, soft_wrap=True)


def _names() -> list[str]:
    from deltamem_mlx.memory.shelf import MemoryShelf

    return MemoryShelf().named()


class ChatUI:
    """Reads questions and shows answers.

    In a terminal, everything goes to stdout as in mlx-lm's chat. In a pipe, stdout has the answers
    only and stderr the rest.

    - quiet: leave out header, figures and remarks.
    - markdown: lay answers out as Markdown, in a terminal.
    """

    def __init__(self, *, quiet: bool = False, markdown: bool = False):
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.quiet = quiet
        self._lines = 0  # read from a pipe
        self.console = make_console() if self.interactive else _plain_console()
        self._typed = Typed(COMMANDS, _names) if self.interactive else None
        self._spinner: Status | None = None
        self._markdown = markdown and self.interactive
        self._answer: MarkdownAnswer | None = None

    def header(self, rows: Mapping[str, str]) -> None:
        if not self.quiet:
            escaped = [(name, escape(value)) for name, value in rows.items()]
            print_header_panel(self.console, "deltamem-mlx chat", escaped)
            self._keys()
            self.say("/remember, /forget, /save, /load, ... : h explains them all", "muted")
            if self.interactive:
                self.say('Esc-Enter: a new line; or """ before and after several', "muted")

    def help(self) -> None:
        self._keys()
        width = max(map(len, COMMANDS))
        for name, what in COMMANDS.items():
            self.console.print(
                f"  [ui.strong]{escape(name.ljust(width))}[/ui.strong]   "
                f"[ui.muted]{escape(what)}[/ui.muted]"
            )

    def _keys(self) -> None:
        keys = "   ".join(
            f"[ui.strong]{key}[/ui.strong] [ui.muted]{what}[/ui.muted]"
            for key, what in KEYS.items()
        )
        self.console.print(f"  [ui.label]commands[/ui.label]    {keys}")

    def ask(self) -> str:
        """What comes next: a line, or all between triple quotes.

        Raises:
            EOFError: At the end of the input.
            ValueError: If it is not UTF-8 text.
        """
        if self._typed is not None:
            typed = self._typed.ask()
            self.console.width = shutil.get_terminal_size().columns  # it may have been resized
            return typed
        text = self._line()
        while opens_quotes(text):
            try:
                text += self._line()
            except EOFError:  # nobody is there to close them
                text += QUOTES
        return unquoted(text)

    def _line(self) -> str:
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        self._lines += 1
        return decoded(line, STANDARD_INPUT, self._lines)

    def confirm(self, question: str) -> bool:
        """Whether the user says yes; nobody there is no."""
        return self._typed is not None and self._typed.confirm(question)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within this an answer comes; a spinner turns until its first piece."""
        if self.interactive and not self.quiet:
            self._spinner = self.console.status("[ui.muted]reading[/ui.muted]")
            self._spinner.start()
        try:
            yield
        finally:
            self._stop_spinner()
            if self._answer is not None:
                self._answer.end()
                self._answer = None

    def reading(self, tokens: int, total: int) -> None:
        """So many tokens of a prompt have been read."""
        if self._spinner is not None and 0 < tokens < total:
            text = f"reading {tokens:,} of {total:,} tokens"
            self._spinner.update(f"[ui.muted]{text}[/ui.muted]")

    def _stop_spinner(self) -> None:
        if self._spinner is not None:
            self._spinner.stop()
            self._spinner = None

    def interrupted(self) -> None:
        """Ctrl-C where there is no answer to stop."""
        self.say("q leaves", "muted")

    def piece(self, text: str) -> None:
        """Text for stdout, as it is; in a terminal, what would steer that is left out."""
        self._stop_spinner()
        sys.stdout.write(text.translate(_HARMLESS) if self.interactive else text)
        sys.stdout.flush()

    def answer_piece(self, text: str) -> None:
        """A piece of an answer."""
        if not self._markdown:
            self.piece(text)
            return
        self._stop_spinner()
        if self._answer is None:
            from deltamem_mlx.cli.chat.markdown import MarkdownAnswer

            self._answer = MarkdownAnswer(self.console)
        self._answer.add(text.translate(_HARMLESS))

    def end_answer(self, last: GenerationResponse | None) -> None:
        if not self._markdown:
            self.piece("\n")
        if last is not None:
            said = f"{last.generation_tokens} tokens · {last.generation_tps:.1f} tok/s"
            if last.prompt_tokens >= LONG_PROMPT:
                said += f" · prompt {last.prompt_tps:.1f} tok/s"
            if last.peak_memory >= LARGE_GB:
                said += f" · peak {last.peak_memory:.2f} GB"
            self.say(said, "muted")

    def written(self, tokens: int, strongest: list[tuple[str, float]], stats: "Stats") -> None:
        """What a turn has written: how much, which words most strongly, and what there is now."""
        words = "".join(f" · {word} {strength:.2f}" for word, strength in strongest)
        now = f"memory {stats['tokens_written']:,} tokens in {stats['memory_bytes'] / 1000:.1f} KB"
        self.say(f"+{tokens:,} token{'s' * (tokens != 1)}{words} · {now}", "muted")

    def done(self, what: str, more: str = "") -> None:
        """A command worked."""
        if not self.quiet:
            self.console.print(
                f"  [ui.good]{escape(what)}[/ui.good] [ui.muted]{escape(more)}[/ui.muted]"
            )

    def say(self, text: str, style: str = "strong") -> None:
        if not self.quiet:
            self.console.print(f"  [ui.{style}]{escape(text)}[/ui.{style}]")

    def problem(self, text: str) -> None:
        """A command did not work."""
        self.console.print(f"  [ui.warn]{escape(text)}[/ui.warn]")

    def table(self, rows: list[list[str]], left: Collection[int] = ()) -> None:
        """Columns of text, the first row being their names; those of ``left`` begin at the left."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            cells = (
                cell.ljust(width) if place in left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            line = escape("   ".join(cells).rstrip())
            style = "muted" if number == 0 else "strong"
            self.console.print(f"  [ui.{style}]{line}[/ui.{style}]")
