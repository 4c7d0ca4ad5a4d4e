"""Looking at files before they are read: what kind they are, and how large."""

import json
import os
import stat
from pathlib import Path

from ..problems import shortened

MOST_JSON_BYTES = 64 << 20


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
        raise FileNotFoundError(f"No {what} {shortened(str(path))}{dangling}.") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a null character
        raise ValueError(f"{shortened(str(path))} is no path of a file: {error}") from None
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a pipe or device"
        raise ValueError(f"{path} is {kind}; expected a regular file.")
    if at_most is not None and found.st_size > at_most:
        raise ValueError(
            f"{path} has {found.st_size:,} bytes; expected at most {at_most:,}. It cannot be what "
            "it was taken for."
        )
    return path


def read_text(path: str | Path, at_most: int | None = None) -> str:
    """The text of a UTF-8 file.

    Raises:
        FileNotFoundError, ValueError: As ``checked_file``, or if it is not UTF-8 text.
    """
    path = checked_file(path, at_most)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line} is not UTF-8 text. Save it as UTF-8.") from None
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}:{line} is not text: it holds a null character.")
    return text


def read_json(path: str | Path, at_most: int = MOST_JSON_BYTES) -> dict[str, object]:
    """The JSON object in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not a JSON object, or larger than ``at_most`` bytes.
    """
    text = read_text(path, at_most)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else "a number too long"
        raise ValueError(f"{path} is not usable JSON: it holds something {reason}.") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected a JSON object.")
    return values
