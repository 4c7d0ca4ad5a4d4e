"""What the README shows, on SmolLM2-135M: commands and scripts as they stand there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from conftest import ROOT, RunCli
from mlx_lm import stream_generate
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx.adapters.drafts import load_draft

pytestmark = pytest.mark.real_model
TEXT = "My sister Maria lives in Porto and works as a nurse. " * 6


def run_example(name: str, *args: Path | str, cwd: Path) -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def adapter(smollm2: Path, tmp_path: Path) -> Path:
    run_example("random_adapter.py", smollm2, tmp_path / "random", cwd=tmp_path)
    return tmp_path / "random"


def test_generate(smollm2: Path, adapter: Path, run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(TEXT)
    flags = ["--model", smollm2, "--adapter", adapter, "-m", "12", "--json", "--compare"]
    flags += ["--remember", tmp_path / "notes.txt", "--memory", tmp_path / "me.safetensors"]
    result = run_cli("generate", "--prompt", "Where does Maria live?", *flags)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert answer["text"] and answer["without_memory"]
    assert answer["memory_bytes"] == 30 * 8 * 8 * 4
    assert (tmp_path / "me.safetensors").stat().st_size < 30_000  # with two turns
    without = run_cli("generate", "--prompt", "Hi", "--model", smollm2, "-m", "4")
    assert without.returncode == 0 and "tokens" in without.stderr


def test_the_shipped_adapter_remembers(smollm2: Path, run_cli: RunCli) -> None:
    if smollm2.name.endswith("q4"):
        pytest.skip("it was trained and measured in float32")
    shipped = ROOT / "adapters" / "smollm2-135m-instruct"
    flags = ["--model", smollm2, "--adapter", shipped, "-m", "12", "--json", "--compare"]
    flags += ["--remember", ROOT / "examples" / "notes.txt"]
    result = run_cli("generate", "--prompt", "What does Oscar do for a living?", *flags)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert "pilot" in answer["text"] and "pilot" not in answer["without_memory"]
    assert answer["memory_bytes"] == 12 * 32 * 32 * 4


def test_plain_mlx_lm_script(smollm2: Path, adapter: Path, tmp_path: Path) -> None:
    output = run_example("plain_mlx_lm.py", smollm2, adapter, cwd=tmp_path)
    assert len(output.strip().splitlines()) >= 3
    assert (tmp_path / "maria.safetensors").is_file()


def test_several_users(smollm2: Path, adapter: Path, tmp_path: Path) -> None:
    output = run_example("batch_users.py", smollm2, adapter, cwd=tmp_path)
    assert output.count("bytes of memory") == 3


@pytest.fixture
def draft(smollm2: Path, tmp_path: Path) -> Path:
    """Its first eight layers."""
    run_example("first_layers.py", smollm2, "8", tmp_path / "draft", cwd=tmp_path)
    return tmp_path / "draft"


def test_a_draft_of_its_own_layers_changes_nothing(smollm2: Path, draft: Path) -> None:
    if smollm2.name.endswith("q4"):
        pytest.skip("it was trained and measured in float32")
    model, tokenizer = dm.load(smollm2, ROOT / "adapters" / "smollm2-135m-instruct")
    guesser = load_draft(draft, model, tokenizer)
    turns = ["My sister Maria lives in Porto.", "Where does Maria live?"]
    plain = dm.MemorySession(model, tokenizer)
    said = [plain.ask(text, max_tokens=16) for text in turns]
    for ahead in (1, 3, 5):
        drafted = dm.MemorySession(model, tokenizer, draft_model=guesser)
        more = {"max_tokens": 16, "num_draft_tokens": ahead}
        assert [drafted.ask(text, **more) for text in turns] == said
        states = dm.memory_state(drafted.cache)
        for layer, state in dm.memory_state(plain.cache).items():
            assert mx.abs(states[layer] - state).max().item() < 1e-5


def test_bench_says_what_a_draft_is_worth(smollm2: Path, draft: Path, run_cli: RunCli) -> None:
    shipped = ROOT / "adapters" / "smollm2-135m-instruct"
    flags = ["--decode-tokens", "8", "--rounds", "1", "--num-draft-tokens", "1,3", "--json"]
    drafts = ["--model", smollm2, "--adapter", shipped, "--draft-model", draft]
    done = run_cli("bench", *drafts, *flags)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["draft"]
    assert [row["ahead"] for row in rows] == [1, 3]
    assert all(row["same"] == row["prompts"] == 3 for row in rows)


def test_a_zero_adapter_changes_no_bit(smollm2: Path) -> None:
    model, tokenizer = dm.load(str(smollm2))
    tokens = mx.array([tokenizer.encode(TEXT)[:40]])
    plain = model(tokens)
    dm.attach(model, dm.DeltaMemConfig(output_init="zero"), seed=0)
    cache = make_prompt_cache(model)
    assert mx.array_equal(model(tokens), plain)
    assert mx.array_equal(model(tokens, cache=cache)[:, -1:].argmax(-1), plain[:, -1:].argmax(-1))
    assert mx.array_equal(dm.detach(model)(tokens), plain)


def test_prefill_steps_agree(smollm2: Path, adapter: Path) -> None:
    model, tokenizer = dm.load(str(smollm2), str(adapter))
    states = []
    for step in (7, 2048):
        cache = make_prompt_cache(model)
        list(
            stream_generate(
                model, tokenizer, TEXT, prompt_cache=cache, prefill_step_size=step, max_tokens=1
            )
        )
        states.append(mx.stack(list(dm.memory_state(cache).values())))
    assert mx.abs(states[0] - states[1]).max() < 1e-3
