"""What version 0.1.0 left on disk, before modules moved, is read and goes on as it did there."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import FIXTURES
from mlx_lm.models.cache import load_prompt_cache

import deltamem_mlx as dm

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
