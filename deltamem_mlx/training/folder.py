"""The folder of a run: whose it is, what may be replaced in it, and one process at a time."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..files import expanded, locked_folder, write_text
from ..forms import FINE_TUNE_TYPE, MLX_LM, files_there, fine_tune_type
from ..model.parameters import PARAMETERS
from .checkpoint import STATE_FILE, read_checkpoint
from .report import CURVE_FILE, METRICS_FILE

SNAPSHOT = re.compile(r"\d{7}_adapters\.safetensors")
# Until its first checkpoint nothing else tells whose the files in a folder are.
BEGUN = STATE_FILE.with_name("begun")
_TENSOR = re.compile(rf"model\.layers\.\d+\.self_attn\.({'|'.join(PARAMETERS)})")
_LEFTOVER = re.compile(
    r"\.(state|begun|adapters|adapter_config|metrics|loss|\d{7}_adapters)-\d+-[0-9a-f]{8}(\.\w+)?"
)
_REPLACE = "choose another --adapter-path, or give --overwrite to begin anew in its place"


def refuse_to_replace(folder: str | Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Raise unless a run may write to ``folder``, or go on in it with ``resume``.

    It may if nothing is there that it would replace, or only what a run that was stopped before
    its first checkpoint has left; with ``overwrite`` also in place of other runs and adapters.

    Raises:
        FileExistsError: If it holds a run, an adapter, or files that have a run's names.
    """
    folder = expanded(folder)
    if (resume and (folder / STATE_FILE).is_file()) or overwrite:
        return
    if (folder / STATE_FILE).exists():
        raise FileExistsError(f"{folder} holds {_run(folder)} {_REPLACE}.")
    there = files_there(folder)
    if (folder / BEGUN).is_file() and _is_ours_or_none(folder):
        return
    copies = sorted(path.name for path in folder.glob("*") if SNAPSHOT.fullmatch(path.name))
    reports = [name for name in (METRICS_FILE, CURVE_FILE) if (folder / name).exists()]
    if found := [*there, *copies, *reports]:
        kind = f"an adapter of type {_kind(folder)!r}" if there else "files of another program"
        named = ", ".join(found[:4]) + (", …" if len(found) > 4 else "")
        raise FileExistsError(f"{folder} holds {kind} ({named}): {_REPLACE}.")


def _run(folder: Path) -> str:
    """A run that is there, and how to go on with it."""
    try:
        found = read_checkpoint(folder)
    except ValueError:
        found = None
    if found is None:
        return "a run whose state cannot be read:"
    _, progress, saved = found
    iters, batches = saved["iters"], saved["grad_accumulation_steps"]
    assert isinstance(iters, int)
    assert isinstance(batches, int)
    at = progress.update * batches
    if progress.update < iters // batches:
        return f"an unfinished run, at iteration {at} of {iters}. Go on with --resume; or"
    return (
        f"a finished run of {iters} iterations. Train it further in another folder, with "
        f"--resume-adapter-file {folder}; or"
    )


def _kind(folder: Path) -> str:
    """What kind of adapter a folder holds."""
    if not (folder / MLX_LM.config).is_file():
        return FINE_TUNE_TYPE
    try:
        return fine_tune_type(folder)
    except ValueError:
        return "unknown"


def _is_ours_or_none(folder: Path) -> bool:
    return not (folder / MLX_LM.config).exists() or _kind(folder) == FINE_TUNE_TYPE


@contextmanager
def one_run(folder: Path) -> Iterator[None]:
    """Within this context no other process trains in ``folder``.

    Raises:
        FolderInUse: If another does already.
    """
    with locked_folder(expanded(folder) / STATE_FILE.parent, "another train"):
        yield


def begin_run(folder: Path) -> list[Path]:
    """Make the folder that of a new run; returns the earlier run's copies, for `has_checkpoint`.

    Until then an earlier run's state, adapter and copies stay, so that one can go on with it should
    this one be stopped before it has anything; its reports go. Of numbered copies only those of
    memories are an earlier run's: LoRA's have the same names.
    """
    if (folder / STATE_FILE).exists():
        for name in (METRICS_FILE, CURVE_FILE):
            (folder / name).unlink(missing_ok=True)
    else:
        write_text(folder / BEGUN, "A run has begun here that has no checkpoint yet.\n")
    copies = folder.glob("*_adapters.safetensors")
    return [path for path in copies if SNAPSHOT.fullmatch(path.name) and _is_memory(path)]


def has_checkpoint(folder: Path, earlier: Sequence[Path]) -> None:
    """From now on the state tells whose the folder is; an earlier run's copies go."""
    (folder / BEGUN).unlink(missing_ok=True)
    for path in earlier:
        path.unlink(missing_ok=True)


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files of a process that was killed; only while no other is at work."""
    for path in [*folder.glob(".*"), *(folder / STATE_FILE).parent.glob(".*")]:
        if _LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def _is_memory(weights: Path) -> bool:
    """Whether a file of weights holds tensors of a memory and nothing else."""
    try:
        with safe_open(str(weights), framework="np") as file:
            names = list(file.keys())
    except (OSError, SafetensorError):
        return False
    return bool(names) and all(map(_TENSOR.fullmatch, names))
