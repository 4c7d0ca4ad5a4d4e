"""Where a user's memories and defaults lie, and what names of memories are."""

import os
import re
from pathlib import Path

from platformdirs import user_config_path, user_data_path, user_state_path

from ..problems import shortened
from .reading import expanded

MEMORY_SUFFIX = ".safetensors"
NAME_RULE = "letters and digits, with -, _ and spaces in between"
_NAME = re.compile(r"[^\W_][\w -]{0,62}[^\W_]|[^\W_]")


def memories_folder() -> Path:
    """The user's folder of memories; it need not be there."""
    return user_data_path("deltamem-mlx", appauthor=False) / "memories"


def is_own_folder(folder: str | Path) -> bool:
    """Whether it is the user's folder of memories, however it is written."""
    return os.path.realpath(expanded(folder)) == os.path.realpath(memories_folder())


def defaults_file() -> Path:
    """The user's file of defaults; it need not be there."""
    return user_config_path("deltamem-mlx", appauthor=False) / "config.yaml"


def chat_history_file() -> Path:
    """What the user has typed into chats; it need not be there."""
    return user_state_path("deltamem-mlx", appauthor=False) / "chat_history"


def is_name(text: str) -> bool:
    """Whether a text is a memory's name: letters, digits, and ``-``, ``_`` and spaces within."""
    return _NAME.fullmatch(text) is not None


def memory_path(text: str | Path, folder: Path | None = None) -> Path:
    """The file of a memory, given by its name or as a path.

    Args:
        text (str or Path): A path holds a separator, begins with ``~`` or ends in ``.safetensors``;
          the rest are names.
        folder (Path): Where named ones lie. Default: the user's folder.

    Raises:
        ValueError: If it is neither.
    """
    given = str(text)
    path = expanded(given)
    if path.suffix.lower() == MEMORY_SUFFIX:
        return path
    if is_name(given):
        return (memories_folder() if folder is None else folder) / f"{given}{MEMORY_SUFFIX}"
    raise ValueError(
        f"{shortened(given)} is neither a memory's name ({NAME_RULE}) nor a file that ends in "
        f"{MEMORY_SUFFIX}."
    )


def memory_called(text: str) -> Path | None:
    """The file of the user's memory of this name; None: there is none.

    A name comes before files and folders that are called so: those are written ``./name``.
    """
    path = memories_folder() / f"{text}{MEMORY_SUFFIX}"
    return path if is_name(text) and path.is_file() else None


def file_of_memory(path: str | Path) -> Path:
    """The path, ``~`` expanded.

    Raises:
        FileNotFoundError: If nothing is there; a named memory that may have been meant is told.
    """
    found = expanded(path)
    if found.exists() or found.is_symlink():
        return found
    named = memory_called(str(path))
    hint = f" The memory of that name is {str(named)!r}." if named else ""
    raise FileNotFoundError(f"There is no file or folder {str(found)!r}.{hint}")


def goes_by_name(path: Path) -> bool:
    """Whether a memory's file is one of the user's, which are called by their names."""
    return path.parent == memories_folder() and is_name(path.stem)


def shown_memory(path: Path) -> str:
    """A memory's file as people call it: its name, if it lies in their folder, else the path."""
    return path.stem if goes_by_name(path) else str(path)
