"""Files on disk: written whole or not at all, looked at before they are read, locked."""

from .jsonl import JsonLine, json_lines
from .locks import FolderInUse, locked_folder
from .reading import checked_file, decoded, expanded, parse_json, read_json, read_text
from .witness import FileChanged, Witness
from .writing import WriteError, write_atomically, write_text

__all__ = [
    "FileChanged",
    "FolderInUse",
    "JsonLine",
    "Witness",
    "WriteError",
    "checked_file",
    "decoded",
    "expanded",
    "json_lines",
    "locked_folder",
    "parse_json",
    "read_json",
    "read_text",
    "write_atomically",
    "write_text",
]
