"""Looking at files before they are read: what kind they are, and how large."""

import json
import os
import re
import stat
from pathlib import Path

from ..problems import shortened, unusable_parts

MOST_JSON_BYTES = 64 << 20
MOST_TEXT_BYTES = 4 << 30

_HEAD = 4096
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DOCUMENTS = {b"%PDF-": "a PDF", b"PK\3\4": "an archive or document", b"{\\rtf": "an RTF document"}


def expanded(path: str | Path) -> Path:
    """The path with ``~`` and ``~user`` expanded; left as it is where there is no such user."""
    return Path(os.path.expanduser(path))


def checked_file(path: str | Path, at_most: int | None = None, what: str = "file") -> Path:
    """The path of a regular file of at most so many bytes, ``~`` expanded.

    What is read without this can be a pipe that never ends, a device, or larger than the RAM.
    ``what`` the file would be is for the message.

    Raises:
        FileNotFoundError: If there is nothing, or a link that points nowhere.
        ValueError: If it is a folder, a pipe or a device, or too large.
    """
    path = expanded(path)
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        dangling = " (a link that points nowhere)" if path.is_symlink() else ""
        raise FileNotFoundError(f"No {what} {shortened(str(path), 400)}{dangling}.") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a null character
        raise ValueError(f"{shortened(str(path), 400)} is no path of a file: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise ValueError(f"{path} is {kind}; expected a regular file.")
    if at_most is not None and found.st_size > at_most:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes; expected at most {at_most:,}. It cannot be what "
            "it was taken for."
        )
    return path


def read_text(path: str | Path, at_most: int = MOST_TEXT_BYTES) -> str:
    """The text of a UTF-8 file, or of what a shell's ``<(command)`` writes.

    Raises:
        FileNotFoundError, ValueError: As ``checked_file``, or if it is not UTF-8 text.
    """
    path = expanded(path)
    if not _is_open_pipe(path):
        checked_file(path, at_most)
    with path.open("rb") as file:
        head = file.read(_HEAD)
        _check_kind(str(path), head)
        return decoded(head + file.read(), str(path))


def _is_open_pipe(path: Path) -> bool:
    """Whether a path is that of a pipe that this process was started with."""
    named = str(path.parent) in ("/dev/fd", "/proc/self/fd") or str(path) == "/dev/stdin"
    return named and path.exists() and stat.S_ISFIFO(path.stat().st_mode)


def decoded(data: bytes, name: str, line: int = 1) -> str:
    """The text in the bytes of a file, or of standard input, that goes by ``name``.

    Lines end in a line feed, as Python reads them. ``line`` is the number of the first.

    Raises:
        ValueError: If it is not UTF-8 text; the message names the line.
    """
    _check_kind(name, data[:_HEAD], line)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        what = f"{error.reason}, byte {error.start}"
        raise ValueError(f"{name}:{line} is not UTF-8 text: {what}. Save it as UTF-8.") from None
    _check_kind(name, data, line)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _check_kind(name: str, data: bytes, line: int = 1) -> None:
    """Raises ValueError if bytes are no text, from how they begin or because of a null.

    Many documents are texts to their programs and nonsense to a model.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name}:{line} is not UTF-8 text but UTF-16. Save it as UTF-8.")
    kind = next((kind for start, kind in _DOCUMENTS.items() if data.startswith(start)), None)
    if kind:
        what = f"{name}:{line} is not text: it is {kind}"
        raise ValueError(f"{what}. Save what it says as plain text.")
    if (null := data.find(b"\0")) >= 0:
        line += data.count(b"\n", 0, null)
        raise ValueError(f"{name}:{line} is not text: it holds a null character.")


def parse_json(text: str) -> object:
    """The value that a JSON text holds.

    Raises:
        ValueError: If it holds none; the message is a phrase: what is wrong, and where.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise ValueError(f"not valid JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise ValueError("not valid JSON: it is too deeply nested") from None
    except ValueError:  # Python converts no number of more than 4,300 digits
        raise ValueError("not valid JSON: it holds a number too long") from None
    if _SURROGATE.search(text):
        for field, why in unusable_parts(value):
            raise ValueError(f"not Unicode text: {field.lstrip('.') or 'it'} {why}")
    return value


def read_json(path: str | Path, at_most: int = MOST_JSON_BYTES) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a JSON object, or larger than ``at_most`` bytes.
    """
    text = read_text(path, at_most)
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{path} is {error}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object.")
    return values
