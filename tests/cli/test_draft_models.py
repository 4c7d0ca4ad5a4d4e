"""`--draft-model` of `generate` and `chat`: the same answers and memories, and what is refused."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
from conftest import ROOT, RunCli

from deltamem_mlx import builtin
from deltamem_mlx.memory.file import read_memory

FACT, QUESTION = "anna lives in oslo .", "where does anna live ?"
DRAFT = ("--draft-model", "builtin", "--num-draft-tokens", "2")


def test_an_answer_and_its_memory_are_those_without(run_cli: RunCli, tmp_path: Path) -> None:
    found = {}
    for name, more in (("plain", ()), ("drafted", DRAFT)):
        path = tmp_path / f"{name}.safetensors"
        for text in (FACT, QUESTION):
            done = run_cli("generate", text, "--memory", path, "--json", *more)
            assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout), read_memory(path)
        assert ("of them drafted" in done.stderr) == bool(more)
    (plain, memory), (drafted, other) = found["plain"], found["drafted"]
    assert drafted["text"] == plain["text"] and "oslo" in plain["text"]
    assert 0 < drafted["drafted_tokens"] <= drafted["generation_tokens"]
    assert memory.tokens_written == other.tokens_written
    for i, state in memory.states.items():
        assert mx.allclose(mx.array(state), mx.array(other.states[i]), atol=1e-5)


def test_a_model_without_a_memory_is_drafted_for_too(call_cli: RunCli) -> None:
    asked = ("generate", QUESTION, "--model", builtin.base_folder(), "-m", "12")
    plain, drafted = call_cli(*asked), call_cli(*asked, *DRAFT)
    assert drafted.returncode == 0 and "of them drafted" in drafted.stderr
    assert drafted.stdout == plain.stdout


def test_a_chat_goes_on_with_its_draft(call_cli: RunCli, tmp_path: Path) -> None:
    lines = f"{FACT}\n/save {tmp_path / 'all'}\n/reset\n/load {tmp_path / 'all'}\n{QUESTION}\n"
    lines += f"/retry\n/undo\n/compare {QUESTION}\n"
    plain, drafted = (call_cli("chat", *more, input=lines) for more in ((), DRAFT))
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout and drafted.stdout.count("oslo") >= 2
    assert "draft" in drafted.stderr


def test_what_cannot_be_drafted_is_one_sentence(call_cli: RunCli, tmp_path: Path) -> None:
    quantized = call_cli("generate", FACT, *DRAFT, "--kv-bits", "8")
    assert quantized.returncode == 2 and "--kv-bits and --draft-model" in quantized.stderr
    other = tmp_path / "other"
    shutil.copytree(builtin.base_folder(), other)
    words = json.loads((other / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    vocabulary |= {"oslo": vocabulary["paris"], "paris": vocabulary["oslo"]}
    (other / "tokenizer.json").write_text(json.dumps(words))
    refused = call_cli("generate", FACT, "--draft-model", other)
    assert refused.returncode == 1 and "another vocabulary" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: --draft-model: ")
    for wrong in ("0", "65"):
        done = call_cli("generate", FACT, "--draft-model", "builtin", "--num-draft-tokens", wrong)
        assert done.returncode == 2 and "--num-draft-tokens" in done.stderr


def test_a_sliding_window_that_fills_up_is_decoded_without(call_cli: RunCli) -> None:
    window = ("generate", QUESTION, "--remember", ROOT / "examples" / "facts.txt")
    window += ("--max-kv-size", "8")
    plain, drafted = call_cli(*window), call_cli(*window, *DRAFT)
    assert drafted.returncode == 0, drafted.stderr
    assert drafted.stdout == plain.stdout
