"""`deltamem-mlx generate`: answers as the library gives them, and one line for what is wrong."""

import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from conftest import RunCli
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.cli.main import app
from deltamem_mlx.memory.file import read_memory

Damage = Callable[[Path], None]

MESSAGES = [{"role": "user", "content": "I am Al."}, {"role": "assistant", "content": "Ok."}]


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random weights, strong enough to change what the tiny model says."""
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


@pytest.fixture
def session(qwen3_tiny: Path, adapter: Path) -> dm.MemorySession:
    return dm.MemorySession(*dm.load(str(qwen3_tiny), str(adapter)))


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("My cat is Miso.\n")
    return path


def call(*args: str | Path, input: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["generate", "-m", "8", *map(str, args)], input=input)
    assert not isinstance(done.exception, Exception), done.exception
    return done


def answered(*args: str | Path) -> dict:
    done = call("--json", *args)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def refused(code: int, *args: str | Path) -> str:
    done = call(*args)
    assert done.exit_code == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ")
    assert "Traceback" not in done.stderr
    return done.stderr


# --- answers


def test_process_streams_the_answer_and_ends_with_figures(
    run_cli: RunCli, qwen3_tiny: Path, adapter: Path, notes: Path, session: dm.MemorySession
) -> None:
    done = run_cli(
        *("generate", "--model", qwen3_tiny, "--adapter", adapter, "--remember", notes),
        *("--prompt", "Who?", "--max-tokens", "8"),
    )
    session.remember("My cat is Miso.")
    session.forget_context()
    assert (done.returncode, done.stdout) == (0, session.ask("Who?", max_tokens=8) + "\n")
    remembered, figures = done.stderr.splitlines()
    assert re.fullmatch(r"Remembered .*notes\.txt: \d+ tokens\.", remembered)
    assert re.fullmatch(
        r"Prompt: \d+ tokens, [\d.]+ tokens/s · answer: 8 tokens, [\d.]+ tokens/s"
        r" · first token: [\d.]+ s · peak memory: [\d.]+ GB · memory state: 768 bytes",
        figures,
    )


def test_json_is_one_object_alone_on_stdout(qwen3_tiny: Path, adapter: Path, notes: Path) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--remember", notes)
    found = answered(*args)
    assert found["generation_tokens"] == 8
    assert found["finish_reason"] == "length"
    assert found["memory_bytes"] == 3 * 8 * 8 * 4
    assert found["tokens_written"] == found["remembered_tokens"] + found["prompt_tokens"] + 8 + 2
    for name in ("prompt_tps", "generation_tps", "time_to_first_token", "peak_memory"):
        assert found[name] > 0, name
    assert "without_memory" not in found


def test_quiet_leaves_the_answer_only(qwen3_tiny: Path, adapter: Path, notes: Path) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--remember", notes)
    done = call("--quiet", *args)
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.rstrip("\n")


def test_keep_context_keeps_what_was_remembered(
    qwen3_tiny: Path, adapter: Path, notes: Path, session: dm.MemorySession
) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--remember", notes)
    kept, dropped = answered(*args, "--keep-context"), answered(*args)
    session.remember("My cat is Miso.")
    assert kept["text"] == session.ask("Who?", max_tokens=8)
    assert kept["text"] != dropped["text"]


@pytest.mark.parametrize("name", ["chat.json", "chat.jsonl", "one.jsonl"])
def test_remembers_messages(
    name: str, qwen3_tiny: Path, adapter: Path, tmp_path: Path, session: dm.MemorySession
) -> None:
    contents = {
        "chat.json": json.dumps(MESSAGES),
        "chat.jsonl": "\n".join(map(json.dumps, MESSAGES)) + "\n\n",
        "one.jsonl": json.dumps({"messages": MESSAGES}),
    }
    path = tmp_path / name
    path.write_text(contents[name])
    found = answered(
        *("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--remember", path)
    )
    assert found["remembered_tokens"] == session.remember(MESSAGES)
    session.forget_context()
    assert found["text"] == session.ask("Who?", max_tokens=8)


def test_remembers_several_files_in_order(
    qwen3_tiny: Path, adapter: Path, tmp_path: Path, session: dm.MemorySession
) -> None:
    paths = [tmp_path / "a.txt", tmp_path / "b.md"]
    flags: list[str | Path] = []
    for path in paths:
        path.write_text(f"This is {path.stem}.")
        flags += ["--remember", path]
        session.remember(f"This is {path.stem}.")
        session.forget_context()
    found = answered("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", *flags)
    assert found["text"] == session.ask("Who?", max_tokens=8)


def test_memory_file_is_made_then_continued(
    qwen3_tiny: Path, adapter: Path, tmp_path: Path, session: dm.MemorySession
) -> None:
    memory = tmp_path / "new" / "me.safetensors"
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--memory", memory)
    first = answered(*args, "--prompt", "I am Al.")
    assert first["text"] == session.ask("I am Al.", max_tokens=8)
    second = answered(*args, "--prompt", "Who?")
    session.forget_context()
    assert second["text"] == session.ask("Who?", max_tokens=8)
    assert second["tokens_written"] > first["tokens_written"]


def test_read_only_leaves_the_memory_file_as_it_is(
    qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "me.safetensors"
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--memory", memory)
    answered(*args, "--prompt", "I am Al.")
    before = memory.read_bytes()
    first = answered(*args, "--prompt", "Who?", "--read-only")
    assert memory.read_bytes() == before
    assert answered(*args, "--prompt", "Who?", "--read-only")["text"] == first["text"]
    absent = tmp_path / "absent.safetensors"
    line = ["generate", *map(str, args[:-1]), str(absent), "--prompt", "Who?", "--read-only"]
    assert CliRunner().invoke(app, line).exit_code == 2 and not absent.exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, ValueError])
def test_what_is_called_remembered_is_kept_if_no_answer_follows(
    end: type[BaseException],
    qwen3_tiny: Path,
    adapter: Path,
    notes: Path,
    session: dm.MemorySession,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory, more = notes.with_name("me.safetensors"), notes.with_name("more.txt")
    more.write_text("My dog is Rex.\n")
    found: list[int] = []

    def ended(*_: object, **__: object) -> None:
        found.append(len(read_memory(memory).history))  # as a kill would leave it
        raise end

    monkeypatch.setattr(dm.MemorySession, "stream", ended)
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--memory", memory, "--prompt", "Who?")
    done = call(*args, "--remember", notes, "--remember", more)
    assert done.exit_code != 0 and done.stderr.count("Remembered ") == 2
    assert found == [2]
    for text in ("My cat is Miso.", "My dog is Rex."):
        session.remember(text)
        session.forget_context()
    for layer, state in dm.memory_state(session.cache).items():
        assert np.array_equal(np.array(state), read_memory(memory).states[layer])
    before = memory.read_bytes()
    call(*args, "--remember", notes, "--read-only")
    assert memory.read_bytes() == before


def test_compare_shows_what_the_model_says_alone(
    qwen3_tiny: Path, adapter: Path, notes: Path
) -> None:
    base, tokenizer = mlx_lm.load(str(qwen3_tiny))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True
    )
    alone = mlx_lm.generate(base, tokenizer, prompt, max_tokens=8)
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--remember", notes)
    found = answered(*args, "--compare")
    assert found["without_memory"] == alone != found["text"]
    assert found["text"] == answered(*args)["text"]
    assert call(*args, "--compare").stdout == (
        f"With memory:\n{found['text']}\n\nWithout memory:\n{alone}\n"
    )


def test_system_prompt_and_stdin(
    qwen3_tiny: Path, adapter: Path, session: dm.MemorySession
) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "-", "--system-prompt", "Hm.")
    done = call(*args, input="Who?")
    told = dm.MemorySession(session.model, session.tokenizer, system_prompt="Hm.")
    assert done.stdout == told.ask("Who?", max_tokens=8) + "\n"


def test_seed_makes_sampling_repeatable(qwen3_tiny: Path, adapter: Path) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--temp", "3", "-m30")
    first = answered(*args, "--seed", "7")["text"]
    assert answered(*args, "--seed", "7")["text"] == first
    assert answered(*args, "--seed", "8")["text"] != first


@pytest.mark.parametrize(
    "flags", [("--kv-bits", "8", "--kv-group-size", "32"), ("--max-kv-size", "16")]
)
def test_small_kv_caches(flags: tuple[str, ...], qwen3_tiny: Path, adapter: Path) -> None:
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who is that? " * 3)
    assert answered(*args, *flags)["generation_tokens"] == 8


# --- models without an adapter, adapters without a model


def test_without_an_adapter_it_is_the_plain_model(qwen3_tiny: Path) -> None:
    model, tokenizer = mlx_lm.load(str(qwen3_tiny))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Who?"}], add_generation_prompt=True
    )
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
    done = call("--model", qwen3_tiny, "--prompt", "Who?")
    assert done.stdout == text + "\n"
    assert done.stderr.splitlines()[-1].endswith("memory state: 0 bytes")


@pytest.mark.parametrize(
    "flags",
    [
        ("--memory", "m.safetensors"),
        ("--read-only",),
        ("--compare",),
        ("--keep-context",),
        ("--remember", "notes.txt"),
    ],
    ids=lambda flags: flags[0],
)
def test_memory_flags_need_an_adapter(flags: tuple[str, ...], qwen3_tiny: Path) -> None:
    said = refused(2, "--model", qwen3_tiny, "--prompt", "Who?", *flags)
    assert flags[0] in said
    assert "--adapter" in said


def test_an_adapter_knows_its_model(qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    knowing = tmp_path / "knowing"
    dm.save_adapter(dm.load(str(qwen3_tiny), str(adapter))[0], knowing)
    text = answered("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?")["text"]
    assert answered("--adapter-path", knowing, "--prompt", "Who?")["text"] == text
    assert "--model" in refused(2, "--adapter", adapter, "--prompt", "Who?")


def test_names_what_to_do_where_the_built_in_pair_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builtin, "_HERE", tmp_path)
    assert "--model FOLDER|REPO --adapter" in refused(1, "--prompt", "Who?")


# --- wrong use


def test_wrong_use_exits_with_2(qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    pair = ("--model", qwen3_tiny, "--adapter", adapter)
    assert "Give a prompt" in refused(2, *pair)
    assert "prompt is empty" in refused(2, *pair, "--prompt", " \n")
    assert "standard input is empty" in refused(2, *pair, "--prompt", "-")
    assert "--tempo" in refused(2, *pair, "--prompt", "Who?", "--tempo", "1")
    assert ".safetensors" in refused(2, *pair, "--prompt", "Who?", "--memory", "memory.bin")
    (tmp_path / "d.safetensors").mkdir()
    assert "folder" in refused(2, *pair, "--prompt", "Who?", "--memory", tmp_path / "d.safetensors")
    both = ("--kv-bits", "8", "--max-kv-size", "64")
    assert "one of them" in refused(2, *pair, "--prompt", "Who?", *both)
    remembered = refused(2, *pair, "--prompt", "Who?", "--remember", tmp_path / "me.safetensors")
    assert f"--memory {tmp_path / 'me.safetensors'}" in remembered
    assert "JSON" in refused(2, *pair, "--prompt", "Who?", "--chat-template-config", "{")
    assert "object" in refused(2, *pair, "--prompt", "Who?", "--chat-template-config", "[]")


def test_unknown_flag_in_a_process(run_cli: RunCli) -> None:
    done = run_cli("generate", "--tempo", "1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: No such option: --tempo")


# --- files to remember


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", b" \n", ["a.txt is empty"]),
        ("a.txt", b"caf\xe9", ["a.txt:1 is not UTF-8"]),
        ("a.jsonl", b'{"role": "user", "content": "a"}\n{"role": ', [":2: not valid JSON"]),
        (
            "a.jsonl",
            b'{"role": "user"}\n\n7',
            ["a.jsonl:1: content: missing", "a.jsonl:3: a number"],
        ),
        ("a.jsonl", b'{"role": "user", "content": 7}', ["a.jsonl:1: content: a number"]),
        ("a.jsonl", b'{"messages": {"role": "user"}}', ["a.jsonl:1: messages: an object"]),
        ("a.jsonl", b'{"messages": [{"content": "a"}]}', ["a.jsonl:1: messages[0].role: missing"]),
        ("a.json", b'[{"role": "user", "content": "a"}, "b"]', ["a.json: item 2: text"]),
        ("a.json", b"[\n{", ["a.json: not valid JSON", "line 2, column 2"]),
        ("a.json", b"[]", ["a.json is empty"]),
        ("a.json", b"[" * 100_000, ["not valid JSON"]),
    ],
)
def test_names_what_cannot_be_remembered(
    name: str, content: bytes, said: list[str], qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    pair = ("--model", qwen3_tiny, "--adapter", adapter)
    found = refused(1, *pair, "--prompt", "Who?", "--remember", path)
    assert all(part in found for part in [name, *said]), found


def test_missing_files(qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    absent = tmp_path / "absent"
    pair = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?")
    assert str(absent) in refused(1, *pair, "--remember", absent)
    assert str(absent) in refused(1, "--model", absent, "--prompt", "Who?")
    assert str(absent) in refused(1, *pair[:3], absent, "--prompt", "Who?")


# --- damaged memories


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def _altered(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)


def _another_adapters(path: Path) -> None:
    # As long as the real one, so that only the fingerprint is wrong.
    data = path.read_bytes()
    at = data.index(b'adapter\\": \\"') + len(b'adapter\\": \\"')
    path.write_bytes(data[:at] + b"0" * 64 + data[at + 64 :])


@pytest.mark.parametrize("damage", [_truncated, _altered, _another_adapters])
def test_damaged_memory_file(
    damage: Damage, qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    memory = tmp_path / "me.safetensors"
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--memory", memory)
    answered(*args)
    damage(memory)
    before = memory.read_bytes()
    assert "me.safetensors" in refused(1, *args)
    assert memory.read_bytes() == before


def test_memory_of_another_adapter(qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    memory, other = tmp_path / "me.safetensors", tmp_path / "other"
    args = ("--model", qwen3_tiny, "--adapter", adapter, "--prompt", "Who?", "--memory", memory)
    answered(*args)
    model, _ = dm.load(str(qwen3_tiny))
    dm.save_adapter(dm.attach(model, dm.DeltaMemConfig(), seed=2), other)
    assert "another adapter" in refused(1, *args[:3], other, *args[4:])


# --- damaged adapters


def _rewrite(folder: Path, change: Callable[[dict[str, mx.array]], dict[str, mx.array]]) -> None:
    path = folder / "adapters.safetensors"
    tensors = change(dict(mx.load(str(path))))
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)
    config = folder / "adapter_config.json"
    values = json.loads(config.read_text())
    del values["weights_sha256"]  # it was of the weights before
    config.write_text(json.dumps(values))


def _truncated_safetensors(folder: Path) -> None:
    _truncated(folder / "adapters.safetensors")


def _truncated_json(folder: Path) -> None:
    _truncated(folder / "adapter_config.json")


def _truncated_npz(folder: Path) -> None:
    dm.convert_adapter(folder, folder / "p", form="published")
    _only(folder, folder / "p")
    _truncated(folder / "delta_mem_adapter_mlx.npz")


def _only(folder: Path, other: Path) -> None:
    """Moves what is in ``other`` here, in place of what is here."""
    for name in ("adapter_config.json", "adapters.safetensors"):
        (folder / name).unlink()
    for path in other.iterdir():
        path.rename(folder / path.name)
    other.rmdir()


def _missing_weights(folder: Path) -> None:
    (folder / "adapters.safetensors").unlink()


def _wrong_shape(folder: Path) -> None:
    def cut(tensors: dict[str, mx.array]) -> dict[str, mx.array]:
        name = "model.layers.1.self_attn.memory_q_proj"
        return tensors | {name: tensors[name][:, :-1]}

    _rewrite(folder, cut)


def _too_many_layers(folder: Path) -> None:
    _rewrite(folder, lambda t: t | {n.replace("layers.0", "layers.3"): x for n, x in t.items()})


def _missing_tensor(folder: Path) -> None:
    _rewrite(folder, lambda t: {n: x for n, x in t.items() if n.rpartition(".")[2] != "beta_bias"})


def _nan(folder: Path) -> None:
    _rewrite(folder, lambda t: t | {n: x * float("nan") for n, x in list(t.items())[:1]})


def _lora(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["fine_tune_type"] = "lora"
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _other_architecture(folder: Path) -> None:
    _rewrite(folder, lambda t: {n: mx.zeros([s + 1 for s in x.shape]) for n, x in t.items()})


def _bad_setting(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    config["delta_mem"]["rank"] = 0
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_truncated_safetensors, "adapters.safetensors cannot be read"),
        (_truncated_json, "not valid JSON"),
        (_truncated_npz, "delta_mem_adapter_mlx.npz cannot be read"),
        (_missing_weights, "no weights"),
        (_wrong_shape, "model.layers.1.self_attn.memory_q_proj: adapter [8, 31], model [8, 32]"),
        (_too_many_layers, "model.layers.3.self_attn.beta_bias: the model has 3 layers"),
        (_missing_tensor, "model.layers.2.self_attn.beta_bias: missing"),
        (_nan, "NaN"),
        (_lora, "'lora'"),
        (_other_architecture, "does not fit this model"),
        (_bad_setting, "rank"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_adapter(
    damage: Damage, said: str, qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    damage(folder)
    assert said in refused(1, "--model", qwen3_tiny, "--adapter", folder, "--prompt", "Who?")


class _Touch:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "legacy", "truncated"])
def test_pickles_are_not_run(kind: str, qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    folder, trace = tmp_path / "adapter", tmp_path / "trace"
    folder.mkdir()
    config = dm.DeltaMemConfig.from_pretrained(adapter).to_dict()
    (folder / "delta_mem_config.json").write_text(json.dumps(config))
    weights = folder / "delta_mem_adapter.pt"
    evil = pickle.dumps({"model.layers.0.self_attn.beta_bias": _Touch(trace)}, protocol=2)
    if kind == "legacy":
        weights.write_bytes(evil)
    else:
        with zipfile.ZipFile(weights, "w") as archive:
            archive.writestr("adapter/data.pkl", evil)
            archive.writestr("adapter/version", "3\n")
    if kind == "truncated":
        _truncated(weights)
    said = refused(1, "--model", qwen3_tiny, "--adapter", folder, "--prompt", "Who?")
    assert "delta_mem_adapter.pt" in said
    assert not trace.exists()


def test_damaged_adapter_in_a_process(
    run_cli: RunCli, qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "adapter"
    shutil.copytree(adapter, folder)
    _truncated_safetensors(folder)
    args = ("generate", "--model", qwen3_tiny, "--adapter", folder, "--prompt", "Who?")
    done = run_cli(*args)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback (most recent call last)" in run_cli(*args, "--debug").stderr


def test_answers_are_the_same_from_npz(qwen3_tiny: Path, adapter: Path, tmp_path: Path) -> None:
    dm.convert_adapter(adapter, tmp_path / "npz", form="published")
    pair = ("--model", qwen3_tiny, "--prompt", "Who?", "--adapter")
    assert answered(*pair, tmp_path / "npz")["text"] == answered(*pair, adapter)["text"]
    with np.load(tmp_path / "npz" / "delta_mem_adapter_mlx.npz") as arrays:
        assert {array.dtype for array in arrays.values()} == {np.dtype(np.float32)}
