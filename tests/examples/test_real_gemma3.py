"""Gemma 3 270M, whose window is 512 tokens: a longer conversation, with a trained memory."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from mlx import nn
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

pytestmark = [pytest.mark.real_model, pytest.mark.timeout(1800)]
LENGTH, LAST = 580, 32
PEOPLE = [
    "Anna",
    "Ben",
    "Clara",
    "David",
    "Elena",
    "Felix",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Karla",
    "Leo",
]
TOWNS = [
    "Paris",
    "Oslo",
    "Rome",
    "Lisbon",
    "Vienna",
    "Dublin",
    "Berlin",
    "Madrid",
    "Athens",
    "Prague",
]
Cache = list


def conversation(rng: Random) -> list[dict[str, str]]:
    """Three are told where somebody lives, one is asked for."""
    lives = {name: rng.choice(TOWNS) for name in rng.sample(PEOPLE, 3)}
    turns = []
    for name, town in lives.items():
        turns.append({"role": "user", "content": f"{name} lives in {town}."})
        turns.append({"role": "assistant", "content": "Noted."})
    asked = rng.choice([*lives])
    turns.append({"role": "user", "content": f"Where does {asked} live?"})
    return [*turns, {"role": "assistant", "content": f"{lives[asked]}."}]


@pytest.fixture(scope="module")
def adapter(gemma3: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that was trained for some steps, by the command."""
    folder, rng = tmp_path_factory.mktemp("trained"), Random(0)
    lines = [json.dumps({"messages": conversation(rng)}) for _ in range(24)]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    flags = ["--iters", "8", "--batch-size", "2", "--learning-rate", "2e-3", "--adapter-path"]
    data = ["--model", str(gemma3), "--data", str(folder / "train.jsonl")]
    run = subprocess.run(
        [sys.executable, "-m", "deltamem_mlx", "train", *data, *flags, str(folder / "adapter")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return folder / "adapter"


@pytest.fixture(scope="module")
def pair(gemma3: Path) -> tuple[nn.Module, TokenizerWrapper]:
    return mlx_lm.load(str(gemma3))


@pytest.fixture(scope="module")
def tokens(pair: tuple[nn.Module, TokenizerWrapper]) -> mx.array:
    rng = Random(1)
    turns = [turn for _ in range(16) for turn in conversation(rng)]
    return mx.array([pair[1].apply_chat_template(turns)[:LENGTH]])


def feed(
    model: nn.Module,
    tokens: mx.array,
    cuts: Sequence[int] = (),
    between: Callable[[Cache], Cache] = lambda cache: cache,
    cache: Cache | None = None,
) -> tuple[np.ndarray, Cache]:
    """Logits of the last tokens of the first row, and the prompt cache."""
    cache, found = cache or make_prompt_cache(model), []
    for start, end in pairwise([0, *cuts, LENGTH]):
        logits = model(tokens[:, start:end], cache=cache)[0, max(LENGTH - LAST - start, 0) :]
        found.append(np.array(logits))
        if end < LENGTH:
            cache = between(cache)
    return np.concatenate(found), cache


def states(cache: Cache) -> np.ndarray:
    return np.stack([np.array(state[0]) for state in dm.memory_state(cache).values()])


def test_a_conversation_beyond_the_window_is_the_same_however_it_is_fed(
    pair: tuple[nn.Module, TokenizerWrapper], tokens: mx.array, adapter: Path, tmp_path: Path
) -> None:
    model = pair[0]
    assert tokens.shape[1] == LENGTH > model.args.sliding_window
    plain = feed(model, tokens)[0]
    dm.load_adapter(model, adapter)

    def from_file(cache: Cache) -> Cache:
        save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
        return load_prompt_cache(str(tmp_path / "cache.safetensors"))

    short, padding = 200, LENGTH - 200
    fresh = zip(*(make_prompt_cache(model) for _ in range(2)), strict=True)
    batch = [entries[0].merge(list(entries)) for entries in fresh]
    for entry in batch:
        entry.prepare(lengths=[LENGTH, short], right_padding=[0, padding])
    padded = mx.concatenate([tokens, mx.pad(tokens[:, :short], [(0, 0), (0, padding)])])

    try:
        whole, cache = feed(model, tokens)
        assert np.abs(whole - plain).max() > 1
        ways = {
            "the window at a time": feed(model, tokens, [512]),
            "100 at a time": feed(model, tokens, range(100, LENGTH, 100)),
            "the last one by one": feed(model, tokens, range(LENGTH - LAST, LENGTH)),
            "from a file": feed(model, tokens, [300, 520], from_file),
            "in a batch": feed(model, padded, [256, 512], cache=batch),
        }
        for how, (logits, other) in ways.items():
            difference = np.abs(logits - whole).max()
            print(f"{how}: {difference:.1e} in logits of up to {np.abs(whole).max():.0f}")
            assert difference <= 1e-5 * np.abs(whole).max(), how
            assert np.abs(states(other) - states(cache)).max() <= 1e-4, how
    finally:
        dm.detach(model)
    assert np.array_equal(feed(model, tokens)[0], plain)


def test_a_trained_memory_is_saved_loaded_and_taken_away(
    pair: tuple[nn.Module, TokenizerWrapper], tokens: mx.array, adapter: Path, tmp_path: Path
) -> None:
    model, tokenizer = pair
    dm.load_adapter(model, adapter)
    try:
        assert list(memory_layers(model)) == list(range(18))
        expected = feed(model, tokens)[0]
        dm.save_adapter(model, tmp_path / "again")
        session = dm.MemorySession(model, tokenizer)
        session.remember("Anna lives in Oslo.")
        session.forget_context()
        session.save(tmp_path / "session")
        answer = str(session.ask("Where does Anna live?", max_tokens=8))
    finally:
        dm.detach(model)
    dm.load_adapter(model, tmp_path / "again")
    try:
        assert np.array_equal(feed(model, tokens)[0], expected)
        restored = dm.MemorySession.restore(tmp_path / "session", model, tokenizer)
        assert str(restored.ask("Where does Anna live?", max_tokens=8)) == answer
    finally:
        dm.detach(model)
