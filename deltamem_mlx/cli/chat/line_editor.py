"""What is typed into `chat` in a terminal: edited, completed, kept for the next time."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.styles import Style

from deltamem_mlx.files.places import chat_history_file

QUOTES = '"""'
# After these a path comes, or the name of a memory: a path begins with ./, / or ~ then.
_PATHS, _NAMES = ("/remember", "/save", "/load"), ("/save", "/load")
_STYLE = Style.from_dict({"rule": "ansibrightblack", "prompt": "bold", "more": "ansibrightblack"})


class Typed:
    """The line editor of a chat.

    Enter ends what is typed; Esc-Enter, or Enter between triple quotes, begins a new line. What is
    pasted may have lines of its own.

    - commands: those that begin with a slash, and what each does.
    - names: says which memories there are.
    """

    def __init__(self, commands: Mapping[str, str], names: Callable[[], list[str]]):
        self._session: PromptSession[str] = PromptSession(
            message=_message,
            prompt_continuation=lambda *_: [("class:more", "· ")],
            multiline=True,
            key_bindings=_keys(),
            completer=CommandCompleter(commands, names),
            complete_while_typing=Condition(_is_a_command),
            history=_history(),
            style=_STYLE,
        )

    def ask(self) -> str:
        """What is typed next. Raises EOFError for Ctrl-D, KeyboardInterrupt for Ctrl-C."""
        return unquoted(self._session.prompt())

    def confirm(self, question: str) -> bool:
        """Whether a question is answered with yes; Ctrl-C and Ctrl-D are no."""
        try:
            asking: PromptSession[str] = PromptSession()
            return asking.prompt(f"  {question} [y/N] ").strip().lower() in ("y", "yes")
        except (EOFError, KeyboardInterrupt):
            return False


class CommandCompleter(Completer):
    """Completes commands, and the paths and names of memories after some of them.

    - commands: as they are explained (`/remember FILE`), and what each does.
    - names: says which memories there are.
    """

    def __init__(self, commands: Mapping[str, str], names: Callable[[], list[str]]):
        # A space behind those that take something.
        self._commands = {
            usage.split()[0] + " " * (" " in usage): what for usage, what in commands.items()
        }
        self._names = names
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Those that go on from the cursor."""
        text = document.text_before_cursor
        name, space, rest = text.partition(" ")
        if not text.startswith("/") or "\n" in text:
            return
        if not space:
            for command, what in self._commands.items():
                if command.startswith(name):
                    shown = command.rstrip()
                    yield Completion(command, -len(name), display=shown, display_meta=what)
        elif name in _NAMES and not rest.startswith(("./", "../", "/", "~")):
            for found in self._names():
                more = _escaped(found)
                if more.startswith(rest):
                    yield Completion(more, -len(rest), display=found)
        elif name in _PATHS:
            yield from self._completed_path(rest, event)

    def _completed_path(self, typed: str, event: CompleteEvent) -> Iterator[Completion]:
        """Of the last word, spaces in names escaped as a shell would have them."""
        word = re.split(r"(?<!\\) ", typed)[-1]
        plain = word.replace("\\ ", " ")
        for found in self._paths.get_completions(Document(plain), event):
            more = _escaped(found.text)
            tail = "/" if os.path.isdir(os.path.expanduser(plain + found.text)) else ""
            yield Completion(more + tail, display=found.display)


def _escaped(text: str) -> str:
    """As a shell would have it."""
    return re.sub(r"([\s'\"\\])", r"\\\1", text)


def opens_quotes(text: str) -> bool:
    """Whether triple quotes begin a text and do not end it yet."""
    text = text.strip()
    return text.startswith(QUOTES) and not (text.endswith(QUOTES) and len(text) >= 2 * len(QUOTES))


def unquoted(text: str) -> str:
    """A text without the triple quotes around it."""
    inner = text.strip()
    if inner.startswith(QUOTES) and not opens_quotes(inner):
        return inner[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _end(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if opens_quotes(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("escape", "c-j")  # as it comes when it was typed before the prompt was there
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _is_a_command() -> bool:
    return get_app().current_buffer.text.startswith("/")


def _message() -> StyleAndTextTuples:
    width = get_app().output.get_size().columns
    return [("class:rule", "─" * max(width - 1, 10) + "\n"), ("class:prompt", "› ")]


def _history() -> History:
    """What was typed before, in a file for its owner only; in RAM where that cannot be written."""
    path = chat_history_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        path.read_bytes()
    except OSError:
        return InMemoryHistory()
    return _LastingHistory(str(path))


class _LastingHistory(FileHistory):
    """A file that may be gone, or on a full disk: the chat goes on."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)
