"""Telling a session what files hold: watched, and stopped between two steps by Ctrl-C."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_mlx.cli.frame import interrupts, launched, output, progress
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.parse import STANDARD_INPUT, standard_input
from deltamem_mlx.cli.options import memories
from deltamem_mlx.files.places import shown_memory
from deltamem_mlx.problems import first_few

if TYPE_CHECKING:
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.session.session import MemorySession
    from deltamem_mlx.text.messages import Message
    from deltamem_mlx.text.sources import Source


# Messages and characters that a file's tokens are guessed by; tokens around a message, usually.
_SAMPLED, _SAMPLE, _AROUND = 200, 10_000, 4


@dataclass
class FilesTold:
    """What became of files that were to be told.

    - files: how many were told whole.
    - messages, tokens: what was written, of all files.
    - seconds: how long it took.
    - stopped_in: the name of the file that Ctrl-C stopped.
    - rest: messages of that file that were not written.
    """

    files: int = 0
    messages: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped_in: str | None = None
    rest: int = 0

    def stopped(self, saved: str = "") -> str:
        """A sentence on what Ctrl-C left undone."""
        if not self.tokens:
            return f"Stopped: nothing of {self.stopped_in} was written."
        return (
            f"Stopped in {self.stopped_in}: {self.tokens:,} tokens were written{saved}; its last "
            f"{self.rest} message{'s' * (self.rest != 1)}, and what comes after, were not."
        )


def sources_of(paths: Sequence[Path], flag: str) -> list["Source"]:
    """What files, folders and patterns tell, and standard input for ``-``; all read before any is
    told.

    Raises:
        UsageError: For a memory file; to the flag or argument it says what to do with one.
        FileNotFoundError, ValueError: As of ``read_sources``.
    """
    from deltamem_mlx.text.files import text_messages
    from deltamem_mlx.text.sources import Source, in_parts, read_sources

    found: list[Source] = []
    for path in paths:
        if path.suffix.lower() == ".safetensors":
            raise UsageError(
                f"{flag}: {str(path)!r} is no text. To go on with the memory in a file: "
                f"--memory {path}"
            )
        if str(path) == "-":
            messages = in_parts(text_messages(standard_input()))
            if not messages:
                raise UsageError(f"{flag}: standard input is empty; expected something to tell.")
            found.append(Source(STANDARD_INPUT, messages))
            continue
        try:
            told, left_out = read_sources([path])
        except FileNotFoundError as error:
            if " " not in str(path) or path.suffix:
                raise
            raise FileNotFoundError(
                f"No file {str(path)!r}. To tell that itself: generate {str(path)!r}, or "
                f"echo {str(path)!r} | deltamem-mlx remember -"
            ) from error
        if left_out:
            output.warn(f"Left out of {path}:\n" + "\n".join(first_few(left_out)))
        known = {source.name for source in found}
        found += [source for source in told if source.name not in known]
    return found


def messages_of(path: Path, flag: str) -> list["Message"]:
    """What a file tells, or a folder as `remember` takes it. Errors as of `sources_of`."""
    from deltamem_mlx.text.files import read_messages

    if path.is_dir():
        return [message for source in sources_of([path], flag) for message in source.messages]
    return read_messages(path)


def tell(
    session: "MemorySession",
    sources: Sequence["Source"],
    *,
    step_size: int | None,
    undo: Callable[[int], str] | None = lambda turns: f"/undo {turns}" if turns > 1 else "/undo",
    after_each: Callable[["Source", int], None] = lambda source, tokens: None,
) -> FilesTold:
    """Write what files tell into the memory, with a bar.

    Ctrl-C ends it after the present step, pressed twice within it; what was written stays.

    - step_size: tokens a step; None: as the device is fast.
    - undo: what one would type to take so many turns back; None: nothing is kept.
    - after_each: called with each file that was told whole, and its tokens.
    """
    known = [source.name for source in sources if _note_told_before(session, source)]
    told, began, done, part = FilesTold(), time.perf_counter(), 0, False
    sizes = [_about_tokens(session.tokenizer, source) for source in sources]
    with interrupts.noted() as pressed, progress.telling(sum(sizes)) as show:
        for source, size in zip(sources, sizes, strict=True):
            before = told.messages, told.tokens
            with (
                suppress(KeyboardInterrupt),
                closing(_steps(session, source, step_size, told)) as s,
            ):
                # Processes that share a model stop at the same step.
                while not launched.first(pressed) and (step := next(s, None)):
                    share, tokens = step
                    show(source.name, done + size * share, tokens)
            part = told.messages > before[0]
            told.rest = len(source.messages) - (told.messages - before[0])
            if told.rest:
                told.stopped_in = source.name
                break
            told.files, done, part = told.files + 1, done + size, False
            after_each(source, told.tokens - before[1])
            for message in source.messages:
                tell_unknown_words(session.tokenizer, str(message.get("content") or ""))
    told.seconds = time.perf_counter() - began
    if known and undo is not None and (turns := told.files + bool(part)):
        what = "that" if turns == 1 else f"these {turns} turns"
        output.note(f"To take {what} back: {undo(turns)}")
    return told


def _called(name: str) -> str:
    """A file's name as a memory keeps it, without where its folder lies on this machine."""
    path = Path(name)
    return path.name if path.is_absolute() or ".." in path.parts else name


def _about_tokens(tokenizer: "TokenizerWrapper", source: "Source") -> int:
    """About how many tokens a file is: by its characters, and how many make a token at its start.

    The bar says "of about" how many for all files together, before the first has been read.
    """
    texts = [str(message.get("content") or "") for message in source.messages]
    start = "\n".join(texts[:_SAMPLED])[:_SAMPLE]
    rate = len(tokenizer.encode(start)) / max(1, len(start))
    return max(1, round(rate * sum(map(len, texts))) + _AROUND * len(texts))


def _note_told_before(session: "MemorySession", source: "Source") -> bool:
    """Says what a memory is told again, if it is: that is written again as well."""
    from deltamem_mlx.text.files import holds_messages

    if before := session.told_before(source.messages):
        count = len(source.messages)
        # As `read_sources` has it: a paragraph of a text is a message.
        what = "messages" if holds_messages(Path(source.name)) else "paragraphs"
        which = "it" if before == count else f"{before:,} of its {count:,} {what}"
        output.note(f"{source.name}: this memory was told {which} before, and is told again.")
    return before > 0


def undo_line(memory: Path, turns: int) -> str:
    """The command line that takes a memory's last turns back."""
    line = memories.line("undo", shown_memory(memory))
    return f"{line} --turns {turns}" if turns > 1 else line


def tell_unknown_words(tokenizer: "TokenizerWrapper", text: str) -> None:
    """Says which words the model cannot read: it will never know of them."""
    if said := unknown_words_text(tokenizer, text):
        output.note(said)


def unknown_words_text(tokenizer: "TokenizerWrapper", text: str) -> str:
    """A sentence that names the words which the model cannot read; empty where it can all."""
    from deltamem_mlx.text.unknown import unknown_words

    words = unknown_words(tokenizer, text)
    return f"The model has no word for: {', '.join(first_few(words, 8))}." if words else ""


def _steps(
    session: "MemorySession", source: "Source", step_size: int | None, told: FilesTold
) -> Generator[tuple[float, int], None, None]:
    """Tells one file; yields which share of it was fed, and the tokens of all files so far.

    What was fed whole is added to ``told``.
    """
    messages, tokens = told.messages, told.tokens
    named = _called(source.name)
    with closing(
        session.remembering(source.messages, prefill_step_size=step_size, source=named)
    ) as steps:
        for written in steps:
            if messages + written.messages > told.messages:
                told.messages = messages + written.messages
                told.tokens = tokens + written.tokens
            yield written.tokens / written.total, tokens + written.tokens
