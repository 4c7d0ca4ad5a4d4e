"""Lines of JSON: a value a line, as .jsonl files hold them."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from .reading import checked_file, parse_json

MOST_LINE_BYTES = 256 << 20


class JsonLine(NamedTuple):
    """A line of a .jsonl file.

    Attributes:
        number (int): Which line, from 1.
        value (object): What it holds; None if that cannot be read.
        wrong (str): Why it cannot be read; empty: it can.
    """

    number: int
    value: object
    wrong: str = ""


def json_lines(path: str | Path) -> Iterator[JsonLine]:
    """The values in a .jsonl file, or one compressed to .gz; blank lines are left out.

    Only a line feed ends a line: the texts in it may hold other separators (U+2028, U+0085).

    Raises:
        FileNotFoundError, ValueError: As ``checked_file``; or if a .gz file is none, or is cut off.
    """
    path = checked_file(path)
    opened = gzip.open if path.suffix.lower() == ".gz" else open
    try:
        with cast(BinaryIO, opened(path, "rb")) as file:
            yield from _values(file)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole .gz file: {error}. Fetch it again.") from None


def _values(file: BinaryIO) -> Iterator[JsonLine]:
    number = 0
    while line := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        if not line.strip():
            continue
        try:
            yield JsonLine(number, _value(line, first=number == 1))
        except ValueError as error:
            yield JsonLine(number, None, str(error))
        if len(line) > MOST_LINE_BYTES:
            return


def _value(line: bytes, first: bool) -> object:
    if len(line) > MOST_LINE_BYTES:
        raise ValueError(f"more than {MOST_LINE_BYTES:,} bytes on one line")
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("not UTF-8 text but UTF-16")
    if b"\0" in line:
        raise ValueError("not text: it holds a null byte")
    try:
        text = line.rstrip(b"\r\n").decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text: {error.reason}, byte {error.start + 1}") from None
    return parse_json(text)
