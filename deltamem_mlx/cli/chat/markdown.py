"""An answer as Markdown in a terminal: what is whole is laid out, the rest is shown as it comes."""

import re

from markdown_it import MarkdownIt
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment, Segments
from rich.text import Text

# The first line of a block of code, and its last.
_OPENS = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_CLOSES = re.compile(r"\s*(`{3,}|~{3,})\s*")


class MarkdownAnswer:
    """Writes one answer to a terminal.

    Paragraphs, lists, tables and blocks of code are laid out once they have ended. What has not
    ended stands below them as plain text, its last lines only where it is longer than the screen.
    HTML is shown as it is written, and a link with its address: neither does anything.

    - console: of the terminal.
    """

    def __init__(self, console: Console):
        self._console = console
        self._rest = ""
        self._any = False
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def add(self, text: str) -> None:
        """A piece of the answer."""
        done, self._rest = blocks(self._rest + text)
        for block in done:
            self._write(block)
        self._live.update(self._tail(), refresh=True)

    def end(self) -> None:
        """The answer is over: what is left of it is laid out as well."""
        self._live.update("", refresh=True)
        self._live.stop()
        if self._rest.strip():
            self._write(self._rest)

    def _write(self, block: str) -> None:
        if self._any:
            self._console.print()
        self._any = True
        lines = self._console.render_lines(laid_out(block), pad=False)
        shown = [bool("".join(segment.text for segment in line).strip()) for line in lines]
        if not any(shown):  # a link's address that is kept for later, for instance
            self._console.print(Text(block.strip()))
            return
        first, last = shown.index(True), len(shown) - shown[::-1].index(True)
        parts = [part for line in lines[first:last] for part in (*line, Segment.line())]
        self._console.print(Segments(parts), end="")

    def _tail(self) -> Text:
        """The last lines of what has not ended, as many as a screen has room for."""
        lines = Text(self._rest).wrap(self._console, self._console.width)
        return Text("\n").join(lines[-max(1, self._console.height - 3) :])


def blocks(text: str) -> tuple[list[str], str]:
    """A text's blocks that have ended, and what comes after them.

    A block ends where, behind a blank line, something begins that is not indented: that would
    belong to it. Blank lines within a block of code end nothing.
    """
    done, start, place, fence, blank = list[str](), 0, 0, "", False
    for line in text.splitlines(keepends=True):
        if blank and not fence and not line[:1].isspace() and text[start:place].strip():
            done.append(text[start:place])
            start = place
        place += len(line)
        blank = not line.strip()
        if fence:
            found = _CLOSES.fullmatch(line)
            fence = "" if found and found[1].startswith(fence) else fence
        elif found := _OPENS.match(line):
            fence = found[1]
    return done, text[start:]


def laid_out(text: str) -> Markdown:
    """A text as Rich shows Markdown, what looks like HTML being text."""
    shown = Markdown("", code_theme="ansi_dark", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])
    shown.parsed = parser.parse(text)
    return shown
