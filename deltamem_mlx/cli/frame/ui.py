"""How `chat` looks: mlx-lm's own header, prompt line and colours, and plain text in a pipe."""

import sys
from collections.abc import Mapping

from mlx_lm.cli_ui import corridor_input, make_console, print_header_panel
from mlx_lm.generate import GenerationResponse
from rich.console import Console
from rich.markup import escape
from rich.theme import Theme

from deltamem_mlx.cli.frame.parse import STANDARD_INPUT
from deltamem_mlx.files import decoded

KEYS = {"q": "exit", "r": "reset", "h": "help"}
COMMANDS = {
    "/remember FILE": "write a file into the memory: text, or .json/.jsonl of messages",
    "/forget": "drop the context and keep the memory",
    "/save PATH": "memory to FILE.safetensors, or everything to a folder; --with-transcript",
    "/load PATH": "go on with what was saved",
    "/fork": "branch off; /back returns to where you were",
    "/stats": "what the memory holds, in numbers",
    "/probe QUESTION": "ask the memory alone, and the model without; nothing is learnt",
    "/compare": "the last question without memory, or /compare QUESTION",
    "/undo": "take the last turn back, or /undo N",
    "/retry": "answer the last question anew",
    "/edit TEXT": "ask this instead of the last question",
    "/reset": "begin anew, as r",
    "/exit": "leave, as q",
}
STYLES = ("strong", "label", "muted", "accent", "border", "good", "warn")


def _plain_console() -> Console:
    theme = Theme({f"ui.{name}": "none" for name in STYLES})
    return Console(stderr=True, theme=theme, highlight=False, soft_wrap=True)


class ChatUI:
    """Reads questions and shows answers.

    In a terminal, everything goes to stdout as in mlx-lm's chat. In a pipe, stdout has the answers
    only and stderr the rest.

    - quiet: leave out header, figures and remarks.
    """

    def __init__(self, *, quiet: bool = False):
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.quiet = quiet
        self._lines = 0  # read from a pipe
        self.console = make_console() if self.interactive else _plain_console()
        if self.interactive:
            import readline  # noqa: F401  (gives input() its line editing and history)

    def header(self, rows: Mapping[str, str]) -> None:
        if not self.quiet:
            escaped = [(name, escape(value)) for name, value in rows.items()]
            print_header_panel(self.console, "deltamem-mlx chat", escaped)
            self._keys()
            self.say("/remember, /forget, /save, /load, ... : h explains them all", "muted")

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
        """The next line.

        Raises:
            EOFError: At the end of the input.
            ValueError: If the line is not UTF-8 text.
        """
        if self.interactive:
            return corridor_input(self.console)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        self._lines += 1
        return decoded(line, STANDARD_INPUT, self._lines)

    def interrupted(self) -> None:
        """Ctrl-C where there is no answer to stop."""
        if self.interactive:
            self.console.print()  # the cursor stands on the rule below the prompt
        self.say("q leaves", "muted")

    def piece(self, text: str) -> None:
        """A piece of an answer."""
        sys.stdout.write(text)
        sys.stdout.flush()

    def end_answer(self, last: GenerationResponse | None) -> None:
        self.piece("\n")
        if last is not None:
            self.say(
                f"{last.generation_tokens} tokens · {last.generation_tps:.1f} tok/s · "
                f"prompt {last.prompt_tps:.1f} tok/s · peak {last.peak_memory:.2f} GB",
                "muted",
            )

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

    def table(self, rows: list[list[str]]) -> None:
        """Columns of text, the first row being their names."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for number, row in enumerate(rows):
            cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            line = escape("   ".join(cells))
            style = "muted" if number == 0 else "strong"
            self.console.print(f"  [ui.{style}]{line}[/ui.{style}]")
