"""From an exception to one sentence on stderr and an exit code.

Exit codes: 0 done, 1 failed, 2 used wrongly (a flag or its value), 130 interrupted.
"""

import json
import re
import sys
import traceback
import zipfile
from difflib import get_close_matches
from pathlib import Path
from typing import TypeGuard

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.problems import shortened

FAILED, MISUSED, INTERRUPTED = 1, 2, 130
_LONGEST = 500
OTHER_ENDED = (
    "Another process of this run has ended, and this one cannot go on alone. mlx.launch says which "
    "it was."
)

# Modules that only some uses need -> the extra of this package that brings them.
EXTRAS = {
    **{"torch": "torch", "matplotlib": "plot"},
    **dict.fromkeys(("lm_eval", "pyarrow", "snowballstemmer"), "eval"),
}

# What other programs call commands of this one.
SYNONYMS = {
    **dict.fromkeys(("delete", "rm", "del", "forget"), "remove"),
    **{"mv": "rename", "move": "rename", "cp": "copy", "duplicate": "copy", "ls": "list"},
    **{"info": "show", "cat": "show", "search": "ask", "query": "ask", "save": "export"},
    **{"load": "import", "add": "import", "revert": "undo", "restore": "redo"},
    **{"run": "generate", "ask": "generate", "tell": "remember", "defaults": "config"},
}
READ_FILES = {".safetensors", ".npz", ".pt", ".gguf", ".json", ".jsonl", ".txt"}


class UsageError(typer.BadParameter):
    """A command was used wrongly: for commands to raise, said as it is."""

    def format_message(self) -> str:
        """The message as it is."""
        return self.message


def report(error: Exception) -> int:
    """Says what went wrong, with the traceback if `--debug`, and returns the exit code."""
    if isinstance(error, typer.Abort) and isinstance(error.__context__, KeyboardInterrupt):
        return INTERRUPTED  # Ctrl-C where something was asked
    if misused(error):
        output.fail(_cut(_usage(error)))
        return MISUSED
    if output.settings.debug:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, BrokenPipeError):
        return FAILED  # whoever read the results has gone
    rank = rank_of(error)
    output.fail(_cut(f"{'' if rank is None else f'rank {rank}: '}{sentence(error)}"))
    return FAILED


def misused(error: Exception) -> TypeGuard[typer.TyperException]:
    """Whether a command was used wrongly, as a command says it or as Typer does."""
    return isinstance(error, typer.TyperException) and error.exit_code == MISUSED


def rank_of(error: Exception) -> int | None:
    """In which other process of mlx.launch an error was raised first; None: in this one."""
    ranks = sys.modules.get("deltamem_mlx.ranks")
    return None if ranks is None else ranks.elsewhere(error)


def _cut(text: str) -> str:
    """The text with no line longer than a bad value may make it."""
    lines = (
        line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…" for line in text.split("\n")
    )
    return "\n".join(lines)


def sentence(error: Exception) -> str:
    """What an exception means to the person who ran the command, and what to do next."""
    error = _translated(error)
    text = str(error).strip()
    match error:
        case typer.Abort():
            return "Input ended before the command was done."
        case RuntimeError() if text.startswith("[ring] connection to a peer"):
            return OTHER_ENDED
        case json.JSONDecodeError():
            return f"{_file_of(error)} is not valid JSON: {text}. Fetch or write it again."
        case UnicodeDecodeError():
            return f"{_file_of(error)} is not UTF-8 text: {error.reason} at byte {error.start}."
        case _ if _from_file_reader(error, text):
            return (
                f"{_file_of(error)} cannot be read as weights: it is cut off or not of its kind. "
                f"Fetch or write it again. ({text})"
            )
        case _ if _is_out_of_memory(error, text):
            return (
                "Out of memory. Try a model with fewer bits, a smaller --max-kv-size or "
                f"--prefill-step-size, or --kv-bits 8. ({text or 'MemoryError'})"
            )
        case ModuleNotFoundError():
            extra = EXTRAS.get((error.name or "").partition(".")[0])
            wanted = f"'deltamem-mlx[{extra}]'" if extra else "--upgrade deltamem-mlx"
            return f"{text}. Install it with: pip install {wanted}"
        case OSError() if error.filename is not None and error.strerror:
            return _os_error(error)
        case OSError() | ValueError() | ImportError() if text:
            return text
        case TypeError() if _is_ours(error):
            return text
    said = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{said}. Run again with --debug for the traceback."


def _usage(error: typer.TyperException) -> str:
    """The message, and where to read more if Typer knows the command."""
    text, context = error.format_message().strip(), getattr(error, "ctx", None)
    if (found := _found(error)) and found not in text:
        text = f"{text.rstrip('.')}; found {found}."
    if near := getattr(error, "possibilities", None):
        option = str(getattr(error, "option_name", "")).lstrip("-")
        if not get_close_matches(option, [one.lstrip("-") for one in near]):
            text = re.sub(r"\s*\(?(Possible options|Did you mean).*", "", text)
    if "unexpected extra argument" in text:
        text += f". {_too_many(context)}" if context is not None else "."
    if context is not None and text.startswith("No such command"):
        text += _other_name(text, context)
    return text if context is None else f"{text}\nTry: {context.command_path} --help"


def _found(error: Exception) -> str:
    """The value that Typer could not use, where it does not say it itself; else empty."""
    listed = getattr(error.__cause__, "errors", None)
    found = listed()[:1] if callable(listed) else []
    return shortened(found[0]["input"]) if found and "input" in found[0] else ""


def _too_many(context: typer.Context) -> str:
    """What to do with more words than a command takes: it may take one that goes in quotes."""
    taken = [p.name for p in context.command.params if p.param_type_name == "argument"]
    if {"text", "question"} & set(taken):
        return "A text of several words goes in quotes."
    return f"Expected {len(taken) or 'none'}: see the options for what else can be said."


def _other_name(text: str, context: typer.Context) -> str:
    """The command that other programs call so; empty: there is none."""
    commands = getattr(context.command, "commands", {})
    meant = next((SYNONYMS[word] for word in SYNONYMS if f"'{word}'" in text), "")
    return f" Did you mean {meant}?" if meant in commands else ""


def _translated(error: Exception) -> Exception:
    """Failures of the Hub that no `hub.resolve` stood around (mlx-lm downloads on its own too)."""
    if "huggingface_hub" not in sys.modules:
        return error
    from deltamem_mlx import hub

    return hub.translate(error)


def _os_error(error: OSError) -> str:
    name = str(error.filename)
    if isinstance(error, FileNotFoundError):
        parent = Path(name).parent
        where = "" if parent.is_dir() else f"; the folder {str(parent)!r} is not there either"
        return f"No file {name!r}{where}. Check the path."
    return f"{error.strerror}: {name!r}. Check the path and its permissions."


def _from_file_reader(error: Exception, text: str) -> bool:
    """Whether MLX, safetensors or zipfile raised this over the contents of a file."""
    return (
        text.startswith(("[load", "[read]"))
        or isinstance(error, zipfile.BadZipFile)
        or type(error).__name__ == "SafetensorError"
    )


def _is_ours(error: Exception) -> bool:
    """Whether this package raised it, so that its text was written for a person."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return bool(frames) and frames[-1].f_globals.get("__name__", "").startswith("deltamem_mlx.")


def _is_out_of_memory(error: Exception, text: str) -> bool:
    return isinstance(error, MemoryError) or "malloc" in text or "nsufficient Memory" in text


def _file_of(error: Exception) -> str:
    """The file that was being read: the innermost one among the locals of the traceback.

    The readers name the file in some of their messages only, and a person with a folder of shards
    needs to know which.
    """
    found = None
    frames = traceback.walk_tb(error.__traceback__)
    for frame, _ in frames:
        for value in frame.f_locals.values():
            path = _as_file(value)
            found = path or found
    return repr(str(found)) if found else "The file"


def _as_file(value: object) -> Path | None:
    name = getattr(value, "name", value) if hasattr(value, "read") else value
    if not isinstance(name, str | Path) or len(str(name)) > 1024:
        return None
    path = Path(name)
    return path if path.suffix.lower() in READ_FILES and path.is_file() else None
