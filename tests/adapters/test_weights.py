"""Weights files are looked at before they are read, and forged ones cost nothing."""

import io
import json
import os
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from golden import GOLDEN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.adapters.files import read_adapter
from deltamem_mlx.forms import MLX_LM, PUBLISHED

PYTORCH = GOLDEN / "tsw_qo_long" / "adapter" / "delta_mem_adapter.pt"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder with an adapter in mlx-lm's form, without a checksum."""
    folder = tmp_path / "saved"
    dm.save_adapter(dm.attach(tiny_model(), dm.DeltaMemConfig(), seed=0), folder)
    return folder


@pytest.fixture
def published(saved: Path, tmp_path: Path) -> Path:
    dm.convert_adapter(saved, tmp_path / "published", form="published")
    return tmp_path / "published"


def npy(shape: tuple[int, ...], dtype: str = "<f4", data: bytes = b"") -> bytes:
    """A .npy file with this header, and after it this."""
    buffer = io.BytesIO()
    about = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue() + data


def zipped(path: Path, entries: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in entries.items():
            file.writestr(name, data)


def zeros(path: Path, megabytes: int) -> None:
    """Written in pieces, so that they are never in this process's memory at once."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as entry:
        entry.write(npy((megabytes << 18,)))
        for _ in range(megabytes):
            entry.write(bytes(1 << 20))


def peak() -> int:
    """Megabytes that this process had at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


BOMBS: dict[str, Callable[[Path], None]] = {
    "a third of a gigabyte of zeros": lambda p: zeros(p, 320),
    "many smaller ones": lambda p: zipped(
        p, {f"{i}.npy": npy((1 << 20,), data=bytes(4 << 20)) for i in range(40)}
    ),
    "a shape beyond its data": lambda p: zipped(p, {"a.npy": npy((1 << 40,), data=bytes(64))}),
    "a shape beyond any": lambda p: zipped(p, {"a.npy": npy((1 << 62, 1 << 62))}),
    "a negative shape": lambda p: zipped(p, {"a.npy": npy((-4,), data=bytes(16))}),
    "objects": lambda p: zipped(p, {"a.npy": npy((1,), "|O", b"cos\nsystem\n.")}),
    "text": lambda p: zipped(p, {"a.npy": npy((1,), "<U8", bytes(32))}),
    "no arrays": lambda p: zipped(p, {"a.npy": b"nothing"}),
    "too many": lambda p: zipped(p, {f"{i}": b"" for i in range(20_000)}),
    "no zip": lambda p: (
        np.save(p.with_suffix(".npy"), np.zeros(3)) or os.replace(p.with_suffix(".npy"), p)
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_an_npz_that_would_unpack_to_much_is_refused_before_it_is_read(
    published: Path, bomb: str
) -> None:
    file = published / PUBLISHED.weights
    BOMBS[bomb](file)
    before = peak()
    with pytest.raises(ValueError, match=r"delta_mem_adapter_mlx\.npz cannot be read") as error:
        read_adapter(published)
    assert peak() - before < 64
    assert len(str(error.value)) < 600


def test_an_npz_of_zeros_for_heads_that_are_off_is_read(published: Path) -> None:
    """The authors' conversions hold those, compressed or not."""
    with np.load(published / PUBLISHED.weights) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    np.savez_compressed(published / PUBLISHED.weights, **values)
    read_adapter(published)


def _header(values: object) -> bytes:
    text = json.dumps(values).encode() if not isinstance(values, bytes) else values
    return struct.pack("<Q", len(text)) + text


FORGED = {
    "a header beyond the file": struct.pack("<Q", 1 << 60),
    "a header of nothing": struct.pack("<Q", 0),
    "offsets beyond the file": _header(
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}
    ),
    "a shape beyond its data": _header(
        {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}
    )
    + bytes(4),
    "data beyond the header": _header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    + bytes(64),
    "deeply nested": _header(b"[" * 100_000),
    "a number of 5,000 digits": _header(
        b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'
    ),
    "a seal of wrong kinds": _header({"__metadata__": {"sha256": "x", "settings": "[1]"}}),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_forged_safetensors_file_is_one_error(saved: Path, forged: str) -> None:
    (saved / MLX_LM.weights).write_bytes(FORGED[forged])
    with pytest.raises(ValueError, match=r"adapters\.safetensors cannot be read") as error:
        read_adapter(saved)
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.mark.parametrize("name", [*MLX_LM.files, *PUBLISHED.files])
def test_a_pipe_is_not_opened(saved: Path, published: Path, name: str) -> None:
    folder = saved if name in MLX_LM.files else published
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises((ValueError, FileNotFoundError)):
        read_adapter(folder)


def test_a_sparse_file_is_not_read(saved: Path) -> None:
    with open(saved / MLX_LM.weights, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="expected at most"):
        read_adapter(saved)


def test_a_tensor_that_repeats_what_it_shows_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the PyTorch form needs torch")
    shutil.copy(PYTORCH.with_name("delta_mem_config.json"), tmp_path)
    torch.save({"a": torch.zeros(1).expand(1 << 34)}, tmp_path / PYTORCH.name)
    with pytest.raises(ValueError, match="larger than the file"):
        read_adapter(tmp_path)


BAD_VALUES = [
    *(5, [], {}, True, "x" * 5000, -1, 10**30, 1e400, float("nan"), None, [[[]]], ["q"] * 9999),
]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    key=st.sampled_from(
        ["delta_mem", "base_model", "fine_tune_type", "weights_sha256", "num_layers"]
        + [f"delta_mem.{name}" for name in dm.DeltaMemConfig().to_dict()]
        + [f"base_model.{name}" for name in ("name", "model_type", "num_layers", "hidden_size")]
    ),
    value=st.sampled_from(BAD_VALUES),
)
def test_settings_of_any_kind_are_one_short_error_or_load(
    saved: Path, key: str, value: object
) -> None:
    file = saved / MLX_LM.config
    original = file.read_text()
    values = json.loads(original)
    *path, last = key.split(".")
    inner = values
    for name in path:
        inner = inner[name]
    inner[last] = value
    file.write_text(json.dumps(values))
    model = tiny_model()
    plain = type(model)
    try:
        dm.load_adapter(model, saved)
    except (ValueError, TypeError) as error:
        assert type(model) is plain and str(saved) in str(error)
        assert max(map(len, str(error).splitlines())) < 400
    finally:
        file.write_text(original)


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"delta_mem": ' + b"9" * 5000 + b"}", b"\xff"])
def test_settings_that_are_no_usable_json(saved: Path, text: bytes) -> None:
    (saved / MLX_LM.config).write_bytes(text)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        read_adapter(saved)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_mutated_files_are_one_error_or_load(saved: Path, published: Path, data: st.DataObject):
    folder, name = data.draw(
        st.sampled_from(
            [(f, n) for f, form in ((saved, MLX_LM), (published, PUBLISHED)) for n in form.files]
        )
    )
    file = folder / name
    original = file.read_bytes()
    mutated = bytearray(original)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "add", "zero"]))
        if kind == "flip":
            mutated[place] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == "cut":
            del mutated[place : place + data.draw(st.integers(1, 64))]
        elif kind == "add":
            mutated[place:place] = data.draw(st.binary(min_size=1, max_size=16))
        else:
            mutated[place : place + 8] = bytes(8)
        mutated = mutated or bytearray(b"x")
    file.write_bytes(bytes(mutated))
    try:
        read_adapter(folder)
    except (ValueError, TypeError, FileNotFoundError) as error:
        assert str(folder) in str(error)
    finally:
        file.write_bytes(original)
