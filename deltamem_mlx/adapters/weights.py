"""Weights files of every form: looked at before they are read, and sealed when they are written.

A seal says which settings the weights were written with, and has a checksum over both. It travels
where other readers pass over it: in the metadata of a safetensors file, in a zip file's comment.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import mlx.core as mx
import numpy as np
from safetensors import safe_open

from ..files import checked_file
from ..problems import shortened

Tensors = dict[str, mx.array]
MOST_BYTES = 4 << 30  # many times the largest adapter
MOST_TENSORS = 1 << 14
# How far weights may be packed: numbers that were trained hardly can be, zeros of heads that are
# off can, and a small file of nothing else is no adapter.
_MOST_PACKED, _SMALL = 16, 64 << 20
_MOST_COMMENT = 65_535
_OURS = b"deltamem_mlx "


@dataclass(frozen=True)
class Seal:
    """What a weights file says of itself.

    Args:
        settings (str): JSON of the values in the file of settings it was written with.
        replaces (str): SHA-256 of the file of settings that was there before; empty: none was.
        sha256 (str): Over both and the tensors.
    """

    settings: str
    replaces: str
    sha256: str


def sealed(tensors: Mapping[str, mx.array], settings: str, replaces: str) -> Seal:
    """The seal of tensors that are written with these settings."""
    digest = hashlib.sha256(f"{settings}\n{replaces}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(np.array(tensor).tobytes())
    return Seal(settings, replaces, digest.hexdigest())


def write_safetensors(path: Path, tensors: Tensors, seal: Seal) -> None:
    """Write tensors and their seal to a safetensors file."""
    mx.save_safetensors(str(path), tensors, {"format": "mlx"} | asdict(seal))


def write_npz(path: Path, tensors: Tensors, seal: Seal) -> None:
    """Write tensors and, if its settings are not endless, their seal to an npz file."""
    with zipfile.ZipFile(path, "w") as file:
        for name, tensor in tensors.items():
            with file.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.array(tensor), allow_pickle=False)
        comment = _OURS + json.dumps(asdict(seal)).encode()
        file.comment = comment if len(comment) <= _MOST_COMMENT else b""


def read_weights(path: Path) -> tuple[Tensors, Seal | None]:
    """The tensors of a weights file, evaluated, and its seal; None: it has none.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no weights file of its kind, too large, damaged or altered. Whatever
          a reader raises about a damaged file is this one error.
        ImportError: If it is in the PyTorch form and torch is not installed.
    """
    checked_file(path, MOST_BYTES, "weights file")
    try:
        tensors, said = _READERS[path.suffix.lower()](path)
        mx.eval(tensors)
        seal = _seal(said)
        if seal and sealed(tensors, seal.settings, seal.replaces) != seal:
            raise ValueError("it was altered or damaged: its checksum does not match")
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        reason = shortened(str(error).strip().partition("\n")[0], 200)[1:-1].rstrip(".")
        raise ValueError(
            f"{path} cannot be read: {reason}. It may be truncated, or no {path.suffix} file of "
            "tensors; download or convert it again."
        ) from error
    return tensors, seal


def _seal(said: Mapping[str, object]) -> Seal | None:
    if "sha256" not in said:
        return None
    values = {name: said.get(name) for name in ("settings", "replaces", "sha256")}
    return Seal(**{name: value if isinstance(value, str) else "" for name, value in values.items()})


def _read_safetensors(path: Path) -> tuple[Tensors, Mapping[str, object]]:
    with safe_open(str(path), framework="np") as file:  # that the header fits the file, to a byte
        metadata: dict[str, str] = file.metadata() or {}
        _check_count(len(file.keys()))
    tensors = mx.load(str(path), format="safetensors")
    if not isinstance(tensors, dict):
        raise ValueError("it holds no tensors by name")
    return tensors, metadata


def _read_npz(path: Path) -> tuple[Tensors, Mapping[str, object]]:
    with zipfile.ZipFile(path) as file:
        _check_unpacked(path, file)
        for info in file.infolist():
            with file.open(info) as entry:
                _check_array(info, entry)
        comment = file.comment
    with np.load(path, allow_pickle=False) as arrays:
        tensors = {name: mx.array(arrays[name]) for name in arrays.files}
    said: object = {}
    if comment[: len(_OURS)] == _OURS[: len(comment)] != b"":  # one of ours, whole or cut off
        said = json.loads(comment.removeprefix(_OURS))
    return tensors, said if isinstance(said, dict) else {}


def _check_array(info: zipfile.ZipInfo, entry: IO[bytes]) -> None:
    """Whether an entry of an npz file is an array of as many numbers as its header says."""
    version = np.lib.format.read_magic(entry)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(entry)
    if dtype.kind != "f" or dtype.itemsize > 8:
        raise ValueError(f"{shortened(info.filename)} is of type {dtype}, expected float32")
    if entry.tell() + dtype.itemsize * int(np.prod(shape, dtype=object)) != info.file_size:
        raise ValueError(f"{shortened(info.filename)} has not the size that its header says")


def _read_torch(path: Path) -> tuple[Tensors, Mapping[str, object]]:
    try:
        import torch
    except ImportError as error:
        raise ImportError(
            f"{path} is in the PyTorch form, which needs torch: pip install 'deltamem-mlx[torch]'"
        ) from error
    with zipfile.ZipFile(path) as file:
        allowed = _check_unpacked(path, file)
    values = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(values, dict) or not all(torch.is_tensor(v) for v in values.values()):
        raise ValueError("it holds no state dict")
    if sum(v.numel() * 4 for v in values.values()) > allowed:  # a view may repeat what it shows
        raise ValueError("its tensors are larger than the file")
    return {name: mx.array(v.float().numpy()) for name, v in values.items()}, {}


def _check_unpacked(path: Path, file: zipfile.ZipFile) -> int:
    """The bytes that a zip file of tensors may unpack to, checked before any of it is read."""
    _check_count(len(file.infolist()))
    allowed = min(max(_SMALL, _MOST_PACKED * path.stat().st_size), MOST_BYTES)
    unpacked = sum(info.file_size for info in file.infolist())
    if unpacked > allowed:
        raise ValueError(f"it would unpack to {unpacked:,} bytes, far more than trained weights do")
    return allowed


def _check_count(tensors: int) -> None:
    if tensors > MOST_TENSORS:
        raise ValueError(f"it holds {tensors:,} entries, expected at most {MOST_TENSORS:,}")


_READERS = {".safetensors": _read_safetensors, ".npz": _read_npz, ".pt": _read_torch}
