"""Memory files hold the state, refuse what does not fit, and never crash on damage."""

import json
import os
import struct
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import GOLDEN, base_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.models.cache import make_prompt_cache
from safetensors.numpy import save_file

import deltamem_mlx as dm
from deltamem_mlx.adapters.loading import fingerprint
from deltamem_mlx.memory.file import MemoryFile, as_bytes, read_memory, write_memory

TOKENS = mx.array([[5, 9, 33, 80, 12, 7, 44, 8]])


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / "tsw_qo" / "adapter")


@pytest.fixture
def saved(model: nn.Module, tmp_path: Path) -> tuple[Path, list]:
    cache = make_prompt_cache(model)
    model(TOKENS, cache=cache)
    dm.save_memory(tmp_path / "m.safetensors", cache, model, note="seven words")
    return tmp_path / "m.safetensors", cache


def test_round_trip(saved: tuple[Path, list], model: nn.Module) -> None:
    path, cache = saved
    loaded = dm.load_memory(path, model)
    for layer, state in dm.memory_state(cache).items():
        assert mx.array_equal(dm.memory_state(loaded)[layer], state)
    assert loaded[0].offset == 0 and loaded[0].memory.written == [8]
    dm.forget_context(cache)
    assert mx.array_equal(model(TOKENS, cache=loaded), model(TOKENS, cache=cache))


def test_what_is_in_it(saved: tuple[Path, list]) -> None:
    path, _ = saved
    memory = read_memory(path)
    assert memory.tokens_written == [8] and memory.note == "seven words"
    assert memory.base_model["model_type"] == "qwen3"
    assert path.stat().st_size < 3 * 8 * 8 * 4 + 1200
    assert path.stat().st_mode & 0o077 == 0
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_another_adapter_is_refused(saved: tuple[Path, list]) -> None:
    other = dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / "tsw_qkvo" / "adapter")
    wrote, loads = read_memory(saved[0]).adapter[:12], fingerprint(other)[:12]
    with pytest.raises(ValueError, match=f"another adapter .*{wrote}.*this one is {loads}"):
        dm.load_memory(saved[0], other)


def test_another_shape_is_refused(model: nn.Module, saved: tuple[Path, list]) -> None:
    msw = dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / "msw_heads4" / "adapter")
    with pytest.raises(ValueError, match="another adapter"):
        dm.load_memory(saved[0], msw)


def test_missing_and_foreign_files(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="No memory file"):
        dm.load_memory(tmp_path / "none.safetensors", model)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="not a memory saved by this package"):
        dm.load_memory(tmp_path / "x.safetensors", model)


def test_nan_is_refused(model: nn.Module, tmp_path: Path) -> None:
    cache = make_prompt_cache(model)
    for layer in cache:
        layer.memory.matrix = mx.full((1, 1, 8, 8), float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        dm.save_memory(tmp_path / "m.safetensors", cache, model)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("note", [{"user": "anna"}, 5, None])
def test_what_could_not_be_read_again_does_not_replace_a_good_file(
    saved: tuple[Path, list], model: nn.Module, note: object
) -> None:
    path, cache = saved
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"nothing was written.*: note: .*expected text"):
        dm.save_memory(path, cache, model, note=note)
    memory = read_memory(path)
    with pytest.raises(ValueError, match=r"state\.0: 1 conversations, but counts of 2"):
        write_memory(path, replace(memory, tokens_written=[1, 2]))
    assert path.read_bytes() == before


def header(data: bytes) -> tuple[dict, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(values: dict, body: bytes) -> bytes:
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    ("kind", "size"), [("F8_E4M3", 2), ("F8_E5M2", 2), ("F8_E8M0", 2), ("F4", 1)]
)
def test_tensors_that_numpy_has_no_type_for_are_refused(
    tmp_path: Path, kind: str, size: int
) -> None:
    path = tmp_path / "narrow.safetensors"
    tensor = {"dtype": kind, "shape": [2], "data_offsets": [0, size]}
    path.write_bytes(with_header({"state.0": tensor}, bytes(size)))
    with pytest.raises(ValueError, match="is no memory file"):
        read_memory(path)


@pytest.mark.parametrize("key", ["version", "memory", "checksum"])
def test_changed_metadata_is_refused(saved: tuple[Path, list], key: str) -> None:
    path, _ = saved
    values, body = header(path.read_bytes())
    values["__metadata__"][key] = values["__metadata__"][key].replace("1", "2").replace("a", "b")
    path.write_bytes(with_header(values, body))
    with pytest.raises(ValueError, match=str(path)):
        read_memory(path)


@pytest.fixture(scope="module")
def intact(model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("memory") / "m.safetensors"
    cache = make_prompt_cache(model)
    model(TOKENS, cache=cache)
    dm.save_memory(path, cache, model)
    return path.read_bytes()


MUTATED = settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@MUTATED
@given(data=st.data())
def test_mutated_files_are_refused_or_whole(
    data: st.DataObject, intact: bytes, tmp_path: Path
) -> None:
    check_mutated(data, intact, tmp_path)


@pytest.mark.slow
@settings(MUTATED, max_examples=5000)
@given(data=st.data())
def test_thousands_of_mutated_files_are_refused_or_whole(
    data: st.DataObject, intact: bytes, tmp_path: Path
) -> None:
    check_mutated(data, intact, tmp_path)


def check_mutated(data: st.DataObject, intact: bytes, folder: Path) -> None:
    """Whatever happens to the bytes, reading gives the same memory or our error."""
    broken = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"]))
        at = data.draw(st.integers(0, max(0, len(broken) - 1)))
        if kind == "flip" and broken:
            broken[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del broken[at : at + data.draw(st.integers(1, 400))]
        elif kind == "insert":
            broken[at:at] = data.draw(st.binary(min_size=1, max_size=20))
        else:
            broken[at:at] = broken[at : at + 50]
    path = folder / "m.safetensors"
    path.write_bytes(broken)
    try:
        memory = read_memory(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert all(np.isfinite(state).all() for state in memory.states.values())
        assert memory.tokens_written == [8]


STATE = np.zeros((1, 1, 8, 8), np.float32)
FORGED = {
    "count beyond int32": {"tokens_written": [2**31]},
    "negative count": {"tokens_written": [-1]},
    "count as text": {"tokens_written": ["8"]},
    "count as truth": {"tokens_written": [True]},
    "fraction": {"tokens_written": [8.5]},
    "no list": {"tokens_written": 8},
    "no counts": {"tokens_written": []},
    "two counts of one": {"tokens_written": [8, 8]},
    "adapter as number": {"adapter": 5},
    "long adapter": {"adapter": "x" * 5000},
    "model as text": {"base_model": "qwen3"},
    "note as list": {"note": ["a"]},
    "date as number": {"created": 2026},
    "no states": {"states": {}},
    "three dimensions": {"states": {0: STATE[0]}},
    "not square": {"states": {0: STATE[..., :4]}},
    "half precision": {"states": {0: STATE.astype(np.float16)}},
    "integers": {"states": {0: STATE.astype(np.int32)}},
    "no conversation": {"states": {0: STATE[:0]}, "tokens_written": []},
    "another batch in one layer": {"states": {0: STATE, 1: np.repeat(STATE, 2, axis=0)}},
    "negative layer": {"states": {-1: STATE}},
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED)
def test_a_checksum_does_not_make_a_forged_file_a_memory(
    forged: dict[str, object], tmp_path: Path
) -> None:
    """Each is written with its right checksum."""
    memory = MemoryFile({0: STATE}, "ab" * 32, {"name": "m"}, [8], "2026-01-01T00:00:00+00:00")
    write_memory(tmp_path / "m.safetensors", memory)
    assert read_memory(tmp_path / "m.safetensors").tokens_written == [8]
    (tmp_path / "m.safetensors").write_bytes(as_bytes(replace(memory, **forged)))
    with pytest.raises(ValueError, match=r"m\.safetensors is damaged: ") as caught:
        read_memory(tmp_path / "m.safetensors")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_same_memory_makes_the_same_file(tmp_path: Path) -> None:
    memory = MemoryFile({0: STATE}, "ab" * 32, {"name": "é"}, [8], "2026-01-01T00:00:00+00:00", "ü")
    paths = [tmp_path / f"{i}.safetensors" for i in range(8)]
    for path in paths:
        write_memory(path, memory)
    assert len({path.read_bytes() for path in paths}) == 1
    assert read_memory(paths[0]).note == "ü"


def test_pipes_devices_and_huge_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    with open(tmp_path / "sparse.safetensors", "wb") as file:
        file.truncate(1 << 40)
    for name in ("pipe", "zero", "sparse"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors .*expected"):
            read_memory(tmp_path / f"{name}.safetensors")


def test_a_tilde_is_the_home_folder(
    saved: tuple[Path, list], model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    dm.save_memory("~/kept/me.safetensors", saved[1], model)
    assert (tmp_path / "kept" / "me.safetensors").is_file()
    assert not (tmp_path / "~").exists()
    assert dm.load_memory("~/kept/me.safetensors", model)[0].memory.written == [8]
