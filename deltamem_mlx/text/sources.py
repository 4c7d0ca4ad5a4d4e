"""Which files are meant by the paths that people give, and what each of them tells."""

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..files import expanded
from .files import holds_messages, read_messages
from .messages import Message

# What counts in a folder. A file that is named itself may be called as it likes.
SUFFIXES = (".txt", ".text", ".md", ".markdown", ".rst", ".org", ".jsonl", ".json")
# A longer paragraph is told in parts, so that there is never much to lose when one is stopped.
LONGEST = 4000


class Source(NamedTuple):
    """A file, and what it tells."""

    name: str
    messages: list[Message]


class Sources(NamedTuple):
    """What paths stand for.

    Attributes:
        told (list[Source]): Files in the order of the paths, those of a folder by their names.
        left_out (list[str]): Files of folders that cannot be told, each with the reason.
    """

    told: list[Source]
    left_out: list[str]


def read_sources(paths: Iterable[str | Path]) -> Sources:
    """What files, folders and patterns (``notes/*.md``) tell.

    Of a folder, files that end as texts or messages do count, at any depth, and none that is
    hidden.

    Raises:
        FileNotFoundError: If there is no such file, or nothing matches.
        ValueError: If a file cannot be told, or a folder holds none that can.
    """
    told: dict[str, Source] = {}
    left_out: list[str] = []
    for path in paths:
        for found, files in _meant(expanded(path)):
            before = len(told)
            for file in files:
                if found is not None and not file.name.lower().endswith(SUFFIXES):
                    left_out.append(f"{file} is neither text nor messages by its name")
                    continue
                try:
                    told.setdefault(os.path.realpath(file), read_source(file))
                except (OSError, ValueError) as error:
                    if found is None:
                        raise
                    left_out.append(" ".join(str(error).split("\n")[:2]))
            if found is not None and len(told) == before and not _known(files, told):
                why = f": {left_out[-1]}" if left_out else ""
                raise ValueError(
                    f"{found} holds nothing to remember; expected files ending in "
                    f"{', '.join(SUFFIXES)}{why}"
                )
    return Sources(list(told.values()), left_out)


def _known(files: Sequence[Path], told: dict[str, Source]) -> bool:
    return any(os.path.realpath(file) in told for file in files)


def read_source(path: Path) -> Source:
    """A file, long paragraphs of its text in parts. Errors as of ``read_messages``."""
    messages = read_messages(path)
    return Source(str(path), messages if holds_messages(path) else in_parts(messages))


def in_parts(messages: Iterable[Message], longest: int = LONGEST) -> list[Message]:
    """Texts of more than ``longest`` characters cut at the ends of lines, sentences or words."""
    return [
        {**message, "content": part}
        for message in messages
        for part in _cut(str(message["content"]), longest)
    ]


def _cut(text: str, longest: int) -> Iterator[str]:
    start = 0
    while len(text) - start > longest:
        end = start + longest
        least = start + longest // 4
        marks = ((text.rfind(mark, least, end), len(mark)) for mark in ("\n", ". ", " "))
        cut = next((at + length for at, length in marks if at >= 0), end)
        yield from filter(None, [text[start:cut].strip()])
        start = cut
    yield from filter(None, [text[start:].strip()])


def _meant(path: Path) -> Iterator[tuple[Path | None, list[Path]]]:
    """(folder, files in it) of each folder that a path means, (None, files) of what else it does.

    Raises FileNotFoundError for a pattern that nothing matches.
    """
    if not path.exists() and glob.has_magic(str(path)):
        matches = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            raise FileNotFoundError(f"No file matches {str(path)!r}.")
    else:
        matches = [path]
    for match in matches:
        yield (match, _within(match)) if match.is_dir() else (None, [match])


def _within(folder: Path) -> list[Path]:
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(place, name) for name in sorted(files) if not name.startswith(".")]
    return found
