"""Files on disk: written whole or not at all, looked at before they are read, locked."""

from .locks import FolderInUse, locked_folder
from .reading import checked_file, expanded, read_json, read_text
from .witness import FileChanged, Witness
from .writing import WriteError, write_atomically, write_text

__all__ = [
    "FileChanged",
    "FolderInUse",
    "Witness",
    "WriteError",
    "checked_file",
    "expanded",
    "locked_folder",
    "read_json",
    "read_text",
    "write_atomically",
    "write_text",
]
