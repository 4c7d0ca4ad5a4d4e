"""A saved session goes on exactly, in another process too; damaged files are refused in words."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from forked import Nursery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlx_lm.tokenizer_utils import TokenizerWrapper

import deltamem_mlx as dm
from deltamem_mlx.session import file

QUESTION = "Which name is it?"
SYSTEM = "Be terse."


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = dm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def pair(qwen3_tiny: Path, adapter: Path) -> tuple:
    return dm.load(str(qwen3_tiny), str(adapter))


@pytest.fixture(scope="module")
def told(pair: tuple) -> dm.MemorySession:
    """A session with something in its memory and its context. Fork it."""
    session = dm.MemorySession(*pair, system_prompt=SYSTEM, max_context=400)
    session.remember("My cat is Miso.")
    session.ask("I am Al.", max_tokens=5)
    return session


@pytest.fixture(scope="module")
def saved(told: dm.MemorySession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder and a memory file. Copy them."""
    folder = tmp_path_factory.mktemp("saved")
    told.save(folder / "session")
    told.save(folder / "memory.safetensors")
    return folder


def states(session: dm.MemorySession) -> dict[int, np.ndarray]:
    return {i: np.array(state) for i, state in dm.memory_state(session.cache).items()}


def assert_same(a: dm.MemorySession, b: dm.MemorySession) -> None:
    assert a.messages == b.messages
    for layer, state in states(a).items():
        assert np.array_equal(state, states(b)[layer]), layer


# --- going on


@pytest.mark.parametrize(
    "granularity", ["token", "message_mean", "sentence_mean"], ids=lambda name: name
)
def test_a_folder_goes_on_bit_for_bit(granularity: str, qwen3_tiny: Path, tmp_path: Path) -> None:
    model, tokenizer = dm.load(str(qwen3_tiny))
    config = dm.DeltaMemConfig(
        output_init="random", online_gain=1.0, memory_write_granularity=granularity
    )
    dm.attach(model, config, seed=1)
    session = dm.MemorySession(model, tokenizer, system_prompt=SYSTEM)
    session.ask("I am Al. Hi!", max_tokens=5)
    session.save(tmp_path / "s")
    restored = dm.MemorySession.restore(tmp_path / "s", model, tokenizer)
    assert_same(restored, session)
    assert restored.stats() == session.stats()
    pieces = [list(s.stream(QUESTION, max_tokens=12)) for s in (restored, session)]
    for mine, theirs in zip(*pieces, strict=True):
        assert mine.token == theirs.token
        assert mx.array_equal(mine.logprobs, theirs.logprobs)
    assert_same(restored, session)


@pytest.mark.parametrize("window", [None, 24])
def test_settings_and_windows_come_back(window: int | None, pair: tuple, tmp_path: Path) -> None:
    given = {"max_kv_size": window, "max_context": 300, "template_kwargs": {"tone": "dry"}}
    session = dm.MemorySession(*pair, system_prompt=SYSTEM, **given)
    session.ask("I am Al. Who are you?", max_tokens=5)
    session.save(tmp_path / "s")
    restored = dm.MemorySession.restore(tmp_path / "s", *pair)
    assert {name: getattr(restored, name) for name in given} == given
    assert restored.ask(QUESTION, max_tokens=12) == session.ask(QUESTION, max_tokens=12)
    for one in (restored, session):
        one.forget_context()
    assert restored.ask(QUESTION, max_tokens=4) == session.ask(QUESTION, max_tokens=4)
    assert_same(restored, session)
    for one in (restored, session):
        one.reset()
    assert restored.messages == session.messages == [{"role": "system", "content": SYSTEM}]


def test_a_fresh_session_can_be_saved(pair: tuple, tmp_path: Path) -> None:
    session = dm.MemorySession(*pair, system_prompt=SYSTEM)
    session.save(tmp_path / "s")
    restored = dm.MemorySession.restore(tmp_path / "s", *pair)
    assert restored.ask("Hi.", max_tokens=4) == session.ask("Hi.", max_tokens=4)
    assert_same(restored, session)


@pytest.mark.parametrize("name", ["session", "memory.safetensors"])
def test_another_process_gives_the_same_answer(
    name: str,
    told: dm.MemorySession,
    saved: Path,
    qwen3_tiny: Path,
    adapter: Path,
    nursery: Nursery,
) -> None:
    code = (
        "import sys, deltamem_mlx as dm\n"
        "model, adapter, path, question = sys.argv[1:]\n"
        "session = dm.MemorySession.restore(path, *dm.load(model, adapter))\n"
        "print([r.token for r in session.stream(question, max_tokens=12)])"
    )
    here = told.fork()
    if name != "session":
        here = dm.MemorySession.restore(saved / name, told.model, told.tokenizer)
    tokens = [response.token for response in here.stream(QUESTION, max_tokens=12)]
    with nursery.piped("-c", code, qwen3_tiny, adapter, saved / name, QUESTION) as other:
        said, notes = other.communicate(300)
    assert said == f"{tokens}\n", notes


def test_a_memory_file_is_the_memory_alone(told: dm.MemorySession, saved: Path) -> None:
    path = saved / "memory.safetensors"
    assert path.stat().st_size < 4000
    assert b"Miso" not in path.read_bytes()
    restored = dm.MemorySession.restore(path, told.model, told.tokenizer)
    assert restored.messages == []
    assert restored.stats()["context_tokens"] == 0
    assert restored.stats()["tokens_written"] == told.stats()["tokens_written"]
    for layer, state in states(told).items():
        assert np.array_equal(state, states(restored)[layer])


def test_a_system_prompt_is_not_written_into_a_memory_again(
    told: dm.MemorySession, saved: Path
) -> None:
    path = saved / "memory.safetensors"
    restored = dm.MemorySession.restore(path, told.model, told.tokenizer, system_prompt=SYSTEM)
    forgotten = told.fork()
    forgotten.forget_context()
    assert restored.ask(QUESTION, max_tokens=6) == forgotten.ask(QUESTION, max_tokens=6)
    for layer, state in states(restored).items():
        assert np.array_equal(state, states(forgotten)[layer])


def test_saving_again_replaces_the_old(told: dm.MemorySession, tmp_path: Path) -> None:
    session, folder = told.fork(), tmp_path / "s"
    session.save(folder)
    first = dm.MemorySession.restore(folder, session.model, session.tokenizer)
    session.ask("Once more.", max_tokens=3)
    session.save(folder)
    kinds = sorted(path.name.split("-")[0] for path in folder.iterdir())
    assert kinds == ["context", "past", "session.json"]
    assert_same(dm.MemorySession.restore(folder, session.model, session.tokenizer), session)
    # What was restored before does not hang on files that are gone.
    assert first.ask("Hi.", max_tokens=3)


def test_an_interrupted_save_leaves_the_old(
    told: dm.MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, folder = told.fork(), tmp_path / "s"
    session.save(folder)
    session.ask("Once more.", max_tokens=3)

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_text", "save_prompt_cache"):
        with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
            patch.setattr(file, name, fail)
            session.save(folder)
        restored = dm.MemorySession.restore(folder, session.model, session.tokenizer)
        assert_same(restored, told)


def test_what_could_not_be_read_again_is_not_written(
    told: dm.MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session, folder = told.fork(), tmp_path / "all"
    session.save(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(file, "MOST_JSON_BYTES", len(before["session.json"]) + 9)
    session.remember("More than nine bytes of text.")
    with pytest.raises(ValueError, match=r"session\.json, and at most .* can be read again"):
        session.save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_killed_processes_left_in_a_folder_is_removed(
    told: dm.MemorySession, tmp_path: Path
) -> None:
    session, folder = told.fork(), tmp_path / "all"
    session.save(folder)
    stamp, dead = "0123456789abcdef", 2**22 + 1
    left = [folder / f".{kind}-{stamp}-{dead}-89abcdef.safetensors" for kind in ("context", "past")]
    running = folder / f".context-{stamp}-{os.getpid()}-89abcdef.safetensors"
    others = folder / f".other-{stamp}-{dead}-89abcdef.safetensors"
    for path in (*left, running, others):
        path.write_bytes(b"cut off")
    session.save(folder)
    assert not any(path.exists() for path in left) and running.exists() and others.exists()


def test_files_are_private(saved: Path) -> None:
    paths = [saved / "memory.safetensors", *(saved / "session").iterdir()]
    assert {path.stat().st_mode & 0o077 for path in paths} == {0}


# --- refused


def test_nothing_there(pair: tuple, tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(path)):
            dm.MemorySession.restore(path, *pair)


def test_does_not_write_among_other_files(told: dm.MemorySession, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        told.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_messages_that_are_no_json(pair: tuple, tmp_path: Path) -> None:
    session = dm.MemorySession(*pair)
    session.remember([{"role": "user", "content": "Hi.", "when": object()}])
    with pytest.raises(ValueError, match="not JSON"):
        session.save(tmp_path / "s")


def test_a_folder_has_settings_of_its_own(pair: tuple, saved: Path) -> None:
    with pytest.raises(ValueError, match="leave out max_context"):
        dm.MemorySession.restore(saved / "session", *pair, max_context=10)


def test_another_adapter(saved: Path, qwen3_tiny: Path) -> None:
    model, tokenizer = dm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(), seed=9)
    for name in ("session", "memory.safetensors"):
        with pytest.raises(ValueError, match="another adapter"):
            dm.MemorySession.restore(saved / name, model, tokenizer)


Values = dict[str, object]


def _resealed(folder: Path, change: Callable[[Values], object]) -> None:
    """Changes session.json and its checksum, as someone who reads the code would."""
    path = folder / "session.json"
    values = json.loads(path.read_text())
    del values["checksum"]
    change(values)
    values["checksum"] = file._checksum(values)
    path.write_text(json.dumps(values))


def _context(folder: Path) -> Path:
    return next(folder.glob("context-*"))


def _reseal_context(folder: Path, change: Callable[[dict, dict], object]) -> None:
    path = _context(folder)
    arrays, metadata = mx.load(str(path), return_metadata=True)
    mx.eval(arrays)
    change(arrays, metadata)
    mx.save_safetensors(str(path), arrays, metadata)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    _resealed(folder, lambda values: values["context"].update(sha256=digest))


def _drop_array(arrays: dict, _: dict) -> None:
    arrays.pop(sorted(arrays)[0])


def _bigger_state(arrays: dict, _: dict) -> None:
    for name, array in arrays.items():
        if array.shape == (1, 1, 8, 8):
            arrays[name] = mx.zeros((1, 1, 8, 9))


def _other_class(_: dict, metadata: dict) -> None:
    for name, value in metadata.items():
        if value == "DeltaMemCache":
            metadata[name] = "copy"


def _plain_class(_: dict, metadata: dict) -> None:
    for name, value in metadata.items():
        if value == "DeltaMemCache":
            metadata[name] = "KVCache"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "session.json").unlink(), "no saved session"),
        (lambda f: _context(f).unlink(), "incomplete"),
        (lambda f: (f / "session.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "session.json").write_text("[" * 10**5), "too deeply nested"),
        (lambda f: (f / "session.json").write_text("{}"), "not a session"),
        (lambda f: (f / "session.json").write_bytes(b"\xff"), "not UTF-8 text"),
        (lambda f: os.truncate(_context(f), 100), "checksum"),
        (lambda f: _resealed(f, lambda v: v.update(version=9)), "version 9"),
        (lambda f: _resealed(f, lambda v: v.update(tokens="x", turns=None)), "tokens.*turns"),
        (lambda f: _resealed(f, lambda v: v.update(tokens=[1, "2"])), r"tokens: .*each an integer"),
        (lambda f: _resealed(f, lambda v: v.pop("visible")), "visible"),
        (lambda f: _resealed(f, lambda v: v["messages"].append({"role": 3})), "role"),
        (
            lambda f: _resealed(f, lambda v: v["context"].update(file="../x.safetensors")),
            r"context: .*the name of a file",
        ),
        (lambda f: _resealed(f, lambda v: v.update(max_context=0)), "max_context: 0, expected"),
        (lambda f: _reseal_context(f, _drop_array), "prompt cache"),
        (lambda f: _reseal_context(f, _bigger_state), "prompt cache"),
        (lambda f: _reseal_context(f, _other_class), "prompt cache"),
        (lambda f: _reseal_context(f, _plain_class), "prompt cache"),
        (lambda f: _reseal_context(f, lambda a, m: m.clear()), "prompt cache"),
    ],
)
def test_damaged_folder(
    damage: Callable[[Path], object], said: str, pair: tuple, saved: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "session"
    shutil.copytree(saved / "session", folder)
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"(?s){said}"):
        dm.MemorySession.restore(folder, *pair)


def _mutated(data: bytes, draw: st.DataObject) -> bytes:
    """Bytes cut out, put in, or changed."""
    start = draw.draw(st.integers(0, len(data)))
    end = draw.draw(st.integers(start, min(len(data), start + 64)))
    return data[:start] + draw.draw(st.binary(max_size=64)) + data[end:]


MUTATED = settings(
    max_examples=150,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SAVED = pytest.mark.parametrize("name", ["memory.safetensors", "session.json", "context"])


@MUTATED
@given(draw=st.data())
@SAVED
def test_mutated_files(
    name: str, draw: st.DataObject, pair: tuple, saved: Path, tmp_path: Path
) -> None:
    check_mutated(name, draw, pair, saved, tmp_path)


@pytest.mark.slow
@settings(MUTATED, max_examples=2000)
@given(draw=st.data())
@SAVED
def test_thousands_of_mutated_files(
    name: str, draw: st.DataObject, pair: tuple, saved: Path, tmp_path: Path
) -> None:
    check_mutated(name, draw, pair, saved, tmp_path)


def check_mutated(
    name: str,
    draw: st.DataObject,
    pair: tuple[object, TokenizerWrapper],
    saved: Path,
    folder: Path,
) -> None:
    """A file that was changed is refused by its name, or means the same."""
    if name == "memory.safetensors":
        target = path = folder / name
        original = (saved / name).read_bytes()
    else:
        path = folder / "session"
        if not path.exists():
            shutil.copytree(saved / "session", path)
        target = path / "session.json" if name == "session.json" else _context(path)
        original = (saved / "session" / target.name).read_bytes()
    target.write_bytes(_mutated(original, draw))
    try:
        restored = dm.MemorySession.restore(path, *pair)
    except (ValueError, FileNotFoundError) as error:
        assert str(folder) in str(error)
    else:
        # A blank between two values, say.
        assert_same(restored, dm.MemorySession.restore(saved / path.name, *pair))
