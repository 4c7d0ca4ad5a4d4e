"""Memory files: the memory of a conversation in one small safetensors file, without its text.

Neither a model nor MLX is needed to read one.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..files import Witness, checked_file, expanded, write_atomically
from ..problems import MAPPING, first_few, list_of, misfits, text_field, whole_number
from .contents import MemoryFile as MemoryFile
from .history import PastTurn, history_problems
from .told import Fingerprints, told_in_note, told_problems

FORMAT = "deltamem_mlx.memory"
VERSIONS = "1", "2"  # the second knows what was told, and the last turns
MOST_BYTES = 1 << 30  # far more than any memory with its notes
_MOST_CONVERSATIONS = 1 << 16
_SCHEMA = {
    "adapter": text_field(256),
    "base_model": MAPPING,
    "tokens_written": list_of(whole_number(), _MOST_CONVERSATIONS),
    "created": text_field(256),
    "note": text_field(MOST_BYTES),
}
_NAMES = {*_SCHEMA, "told", "history"}
_STATE, _PAST = "state.", "history."  # begin the names of tensors


def write_memory(
    path: str | Path,
    memory: MemoryFile,
    witness: Witness | None = None,
    *,
    keep_undone: bool = False,
) -> None:
    """Write a memory file atomically, readable by its owner only.

    Args:
        path (Path): The file.
        memory (MemoryFile): What it is to hold.
        witness (Witness): Whose newer file must not be replaced; default: any may.
        keep_undone (bool): Keep the file beside it of what was taken back: it leads to this memory.
          Default: let go of it.

    Raises:
        ValueError: If the memory holds NaN, or what could not be read again.
        OSError: If it cannot be written, or ``witness`` finds that it was changed meanwhile.
    """
    # A good file is not replaced by one that the reader refuses.
    packed = [turn.packed for turn in memory.history]
    if problems := _problems(json.loads(_metadata(memory)), memory.states, packed):
        found = "; ".join(first_few(problems))
        raise ValueError(f"{path}: nothing was written, it could not be read again: {found}.")
    _check_finite(Path(path), memory.states)
    data = as_bytes(memory)
    write_atomically(path, lambda p: p.write_bytes(data), 0o600, witness)
    if not keep_undone:
        remove_undone(path)


def as_bytes(memory: MemoryFile) -> bytes:
    """The file of a memory, whatever it holds."""
    version = VERSIONS[memory.told is not None or bool(memory.history)]
    metadata = {"format": FORMAT, "version": version, "memory": _metadata(memory)}
    packed = [turn.packed for turn in memory.history]
    metadata["checksum"] = _checksum(metadata, memory.states, packed)
    tensors = {f"{_STATE}{i}": state for i, state in memory.states.items()}
    tensors |= {f"{_PAST}{n}": turn for n, turn in enumerate(packed)}
    return _in_order(save(tensors, metadata))


def undone_file(path: str | Path) -> Path:
    """The hidden file beside a memory's that has what was taken back from it, if there is any."""
    target = Path(os.path.realpath(expanded(path)))
    return target.with_name(f".{target.stem.encode()[:200].decode(errors='ignore')}.undone")


def remove_undone(path: str | Path) -> None:
    """Let go of what was taken back from a memory file: it cannot be put back any more."""
    with suppress(OSError):
        undone_file(path).unlink(missing_ok=True)


def _in_order(data: bytes) -> bytes:
    """A safetensors file with its metadata in order: the library has another each time."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of this
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def read_memory(path: str | Path) -> MemoryFile:
    """Read and verify a memory file, without a model.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no memory file, damaged, altered, or holds NaN.
    """
    path = checked_file(path, MOST_BYTES, "memory file")
    try:
        metadata, tensors = _read_safetensors(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no memory file, or is cut off: it does not begin as one. Give a file that "
            "deltamem-mlx has saved."
        ) from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        # An AttributeError is for a type that NumPy has no name for, such as those of 8 bits.
        raise ValueError(f"{path} is no memory file, or truncated: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} is a safetensors file, but not a memory saved by this package.")
    if metadata.get("version") not in VERSIONS:
        raise ValueError(
            f"{path} has format version {metadata.get('version')}, expected "
            f"{' or '.join(VERSIONS)}. Use the version of deltamem-mlx that wrote it."
        )
    try:
        states, packed = _numbered(tensors, _STATE), _numbered(tensors, _PAST)
        names = {*(f"{_STATE}{i}" for i in states), *(f"{_PAST}{n}" for n in packed)}
        if names != set(tensors) or list(packed) != list(range(len(packed))):
            raise ValueError("its tensors have other names than state.LAYER and history.TURN")
        values = json.loads(metadata["memory"])
        past = list(packed.values())
        whole = metadata.get("checksum") == _checksum(metadata, states, past)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error!r:.200}") from error
    if not whole:
        raise ValueError(f"{path} was altered or damaged: its checksum does not match.")
    problems = _problems(values, states, past)
    if problems:
        raise ValueError(f"{path} is damaged: {'; '.join(first_few(problems))}.")
    _check_finite(path, states)
    return _memory(values, states, past)


def _numbered(tensors: Mapping[str, np.ndarray], kind: str) -> dict[int, np.ndarray]:
    """The tensors whose names begin so, by the number that follows, in order."""
    found = {
        int(name.removeprefix(kind)): x for name, x in tensors.items() if name.startswith(kind)
    }
    return dict(sorted(found.items()))


def _memory(
    values: dict[str, Any], states: dict[int, np.ndarray], packed: Sequence[np.ndarray]
) -> MemoryFile:
    told, turns = values.pop("told", None), values.pop("history", [])
    memory = MemoryFile(
        states=states,
        **values,
        told=None if told is None else Fingerprints.from_json(told),
        history=tuple(map(PastTurn.from_json, turns, packed)),
    )
    if memory.told is None and (told_before := told_in_note(memory.note)) is not None:
        return replace(memory, note="", told=told_before)
    return memory


def _problems(
    values: object, states: Mapping[int, np.ndarray], packed: Sequence[np.ndarray]
) -> list[str]:
    """What a memory file holds that none may: a checksum says only that it was meant so."""
    if not isinstance(values, dict):
        return ["what is said of the memory is no object"]
    problems = misfits({"note": ""} | values, _SCHEMA)
    problems += [f"{name}: not known" for name in values if name not in _NAMES]
    if "told" in values:
        problems += [f"told.{line}" for line in told_problems(values["told"])]
    if not problems:
        turns = values.get("history", [])
        problems = history_problems(turns, packed, len(values["tokens_written"]))
    if problems:
        return problems
    if not states:
        return ["it holds no states"]
    rows = len(values["tokens_written"])
    for i, state in states.items():
        shape = list(state.shape)
        if i < 0 or state.dtype != np.float32 or len(shape) != 4 or shape[2] != shape[3]:
            problems.append(f"state.{i}: {state.dtype} {shape}, expected float32 [B, H, r, r]")
        elif shape[0] != rows or 0 in shape:
            problems.append(f"state.{i}: {shape[0]} conversations, but counts of {rows}")
    return problems


def _read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    with safe_open(os.fspath(path), framework="np") as file:
        names = list(file.keys())
        return dict(file.metadata() or {}), {name: file.get_tensor(name) for name in names}


def _metadata(memory: MemoryFile) -> str:
    values = {name: getattr(memory, name) for name in _SCHEMA}
    if memory.told is not None:
        values["told"] = memory.told.as_json()
    if memory.history:
        values["history"] = [turn.as_json() for turn in memory.history]
    return json.dumps(values, sort_keys=True)


def _checksum(
    metadata: Mapping[str, str], states: Mapping[int, np.ndarray], packed: Sequence[np.ndarray]
) -> str:
    version = metadata["version"]
    digest = hashlib.sha256(b"" if version == VERSIONS[0] else version.encode())
    digest.update(metadata["memory"].encode())
    for i in sorted(states):
        digest.update(f"{i} {states[i].dtype} {states[i].shape}".encode())
        digest.update(np.ascontiguousarray(states[i]).tobytes())
    for turn in packed:
        digest.update(f"{turn.dtype} {turn.shape}".encode())
        digest.update(np.ascontiguousarray(turn).tobytes())
    return digest.hexdigest()


def _check_finite(path: Path, states: dict[int, np.ndarray]) -> None:
    bad = [str(i) for i, state in states.items() if not np.isfinite(state).all()]
    if bad:
        raise ValueError(f"{path}: the states of layers {', '.join(bad)} are not finite.")
