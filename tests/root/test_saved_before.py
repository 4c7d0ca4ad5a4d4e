"""What version 0.1.0 left on disk, before modules moved, is read and goes on as it did there."""

import json
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import FIXTURES
from mlx_lm.models.cache import load_prompt_cache
from serving import ANSWER, FACT, QUESTION, Client, builtin_pair
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.adapters.loading import adapter_of, fingerprint, has_fingerprint
from deltamem_mlx.cli.main import app
from deltamem_mlx.memory.file import read_memory, write_memory
from deltamem_mlx.model.fingerprint import fingerprints_of
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

SAVED = FIXTURES / "saved_by_0.1.0"
EXPECTED = json.loads((SAVED / "expected.json").read_text())


@pytest.fixture(params=["token", "message"])
def writes(request: pytest.FixtureRequest) -> str:
    """How the saved adapter writes: token by token, or one mean a message."""
    return request.param


def next_logits(model: object, cache: list) -> np.ndarray:
    """After three more tokens."""
    return np.array(model(mx.array([[5, 6, 7]]), cache=cache)[0, -1].astype(mx.float32))


@pytest.mark.parametrize("form", ["adapter", "adapter-published"])
def test_its_session_folders_go_on(qwen3_tiny: Path, writes: str, form: str) -> None:
    model, tokenizer = dm.load(str(qwen3_tiny), SAVED / writes / form)
    session = dm.MemorySession.restore(SAVED / writes / "session", model, tokenizer)
    for layer, state in dm.memory_state(session.cache).items():
        np.testing.assert_allclose(state, EXPECTED[writes]["states"][str(layer)], atol=1e-5)
    found = next_logits(model, session.fork().cache)
    np.testing.assert_allclose(found, EXPECTED[writes]["logits"], atol=1e-4)
    assert session.ask("who?", max_tokens=6) == EXPECTED[writes]["next"]


def test_its_prompt_caches_go_on(qwen3_tiny: Path, writes: str) -> None:
    model, _ = dm.load(str(qwen3_tiny), SAVED / writes / "adapter")
    cache = load_prompt_cache(str(SAVED / writes / "cache.safetensors"))
    found = next_logits(model, cache)
    np.testing.assert_allclose(found, EXPECTED[writes]["logits"], atol=1e-4)


def test_its_memory_files_are_read(qwen3_tiny: Path, writes: str) -> None:
    model, _ = dm.load(str(qwen3_tiny), SAVED / writes / "adapter")
    cache = dm.load_memory(SAVED / writes / "memory.safetensors", model)
    for layer, state in dm.memory_state(cache).items():
        np.testing.assert_allclose(state, EXPECTED[writes]["states"][str(layer)], atol=1e-5)


def test_its_fingerprints_are_known_beside_those_of_now(qwen3_tiny: Path, writes: str) -> None:
    """Memory files, session folders and prompt caches carry them; those of others are refused."""
    model, _ = dm.load(str(qwen3_tiny), SAVED / writes / "adapter")
    then = read_memory(SAVED / writes / "memory.safetensors").adapter
    assert then != fingerprint(model) and has_fingerprint(model, then)
    attention = model.layers[0].self_attn
    attention.beta_bias = attention.beta_bias + 1e-6
    assert not has_fingerprint(model, then)
    with pytest.raises(ValueError, match=f"another adapter .*{then[:12]}"):
        dm.load_memory(SAVED / writes / "memory.safetensors", model)
    cache = load_prompt_cache(str(SAVED / writes / "cache.safetensors"))
    cache[0].memory.mark = then
    with pytest.raises(ValueError, match=f"made under another adapter .*{then[:12]}"):
        next_logits(model, cache)


def test_a_servers_folder_and_the_commands_know_them(tmp_path: Path) -> None:
    pair = builtin_pair()
    session = dm.MemorySession(*pair)
    session.remember(FACT)
    session.save(tmp_path / "me.safetensors")
    saved = read_memory(tmp_path / "me.safetensors")
    adapter = adapter_of(pair[0])
    then = fingerprints_of(adapter.config, adapter.tensors).before
    assert saved.adapter == fingerprint(pair[0]) != then
    write_memory(tmp_path / "me.safetensors", replace(saved, adapter=then))
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path, named=True)) as on:
        client = Client(on.url)
        assert ANSWER in client.chat(QUESTION, "me", memory={"read_only": True}).text
        file = (tmp_path / "me.safetensors").read_bytes()
        assert client.memory("PUT", "other", body=file).status in (200, 201)
    asked = CliRunner().invoke(
        app, ["memories", "ask", QUESTION, "--json", "--folder", str(tmp_path)]
    )
    assert len(json.loads(asked.stdout)) == 2, asked.stderr
