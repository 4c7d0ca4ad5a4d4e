"""What of a course is done: small files that are written whole, and tell it from another course."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...adapters.files import read_adapter
from ...files import read_json, write_text
from ...model.fingerprint import fingerprints_of
from ...problems import differing, shortened

COURSE, STEP = "course.json", "step.json"

Values = dict[str, Any]


def open_course(folder: Path, settings: Mapping[str, object]) -> Values:
    """The ledger of the course in ``folder``, made if there is none.

    Raises:
        ValueError: If the folder holds a course with other settings; all differences are named.
    """
    settings = json.loads(json.dumps(settings))
    if not (folder / COURSE).exists():
        write_ledger(folder / COURSE, {"settings": settings})
    found = read_json(folder / COURSE)
    before = found.get("settings")
    before = before if isinstance(before, dict) else {}
    other = [
        f"{name}: {shortened(before.get(name))} there, {shortened(settings.get(name))} now"
        for name in differing(before, settings)
    ]
    if other:
        raise ValueError(
            f"{folder.parent} holds another course ({'; '.join(other)}): give its settings to go "
            "on with it, another --adapter-path, or --overwrite to begin anew in its place."
        )
    return dict(found)


def write_ledger(path: Path, values: Mapping[str, object]) -> None:
    """Write a ledger in one piece."""
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def begin_step(folder: Path, given: str) -> None:
    """Make a folder that of a step, unless it is already; a step on another adapter is begun anew.

    Args:
        folder (Path): Of the step.
        given (str): Fingerprint of the adapter that it goes on from; empty: of none.
    """
    if _read(folder).get("given") != given:
        shutil.rmtree(folder, ignore_errors=True)
        write_ledger(folder / STEP, {"given": given})


def halved(folder: Path) -> int:
    """How often the learning rate of a step was halved."""
    return int(_read(folder).get("halved", 0))


def iterations_of(folder: Path) -> int | None:
    """How long a training was decided to be; None: it was not yet."""
    found = _read(folder).get("iters")
    return found if isinstance(found, int) else None


def note_iterations(folder: Path, iters: int) -> None:
    """Write down how long a training is, so that one that goes on is as long."""
    write_ledger(folder / STEP, {**_read(folder), "iters": iters})


def begin_slower(folder: Path) -> int:
    """Begin a training anew with half its learning rate; returns how often that was done."""
    values = dict(_read(folder)) | {"halved": halved(folder) + 1}
    (folder / STEP).unlink()  # a folder without it is begun anew, if this is stopped
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_ledger(folder / STEP, values)
    return int(values["halved"])


def end_step(folder: Path, given: str, seconds: float, result: Mapping[str, object]) -> None:
    """Write down that a step is done."""
    made = adapter_there(folder)
    values = {"given": given, "made": made, "seconds": round(seconds, 1), "result": dict(result)}
    write_ledger(folder / STEP, {**_read(folder), **values})


def finished_step(folder: Path, given: str) -> Values | None:
    """What a step has written down, if it is done, of this adapter, and what it made is whole."""
    found = _read(folder)
    if "made" not in found or found.get("given") != given:
        return None
    return dict(found) if found["made"] == adapter_there(folder) else None


def adapter_there(folder: Path) -> str:
    """The fingerprint of the adapter in a folder; empty: there is none that is whole."""
    try:
        adapter = read_adapter(folder)
    except (OSError, ValueError):
        return ""
    return fingerprints_of(adapter.config, adapter.tensors).before  # as ledgers have it by now


def _read(folder: Path) -> Mapping[str, Any]:
    try:
        return read_json(folder / STEP)
    except (OSError, ValueError):
        return {}
