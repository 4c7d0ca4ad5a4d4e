"""However tokens are fed, the logits and the state are the same."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import GOLDEN, base_model, batch_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx.model.patch import config_of

STRATEGIES = ["tsw_qo", "msw_heads4", "ssw_message_spans", "ssw_sentence_spans"]
LENGTH = 97
TOKENS = mx.random.randint(3, 96, (1, LENGTH), key=mx.random.key(7))
MESSAGES = [[i // 20 - 1 for i in range(LENGTH)]]
SENTENCES = [[i // 7 if i % 20 > 4 else -1 for i in range(LENGTH)]]


@pytest.fixture(scope="module", params=STRATEGIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / request.param / "adapter")


@pytest.fixture(scope="module")
def whole(model: nn.Module) -> tuple[mx.array, dict[int, mx.array]]:
    """Logits and states of one call over all tokens, then of five decoded ones."""
    cache = make_prompt_cache(model)
    with spans(cache):
        logits = model(TOKENS, cache=cache)
    logits = [logits, *(model(TOKENS[:, i : i + 1], cache=cache) for i in range(5))]
    return mx.concatenate(logits, axis=1), dm.memory_state(cache)


def spans(cache: list, rows: int = 1) -> AbstractContextManager:
    return dm.write_spans(cache, MESSAGES * rows, SENTENCES * rows)


def feed(
    model: nn.Module,
    cache: list,
    cuts: list[int],
    between: Callable[[list], list] | None = None,
) -> mx.array:
    """Feed TOKENS cut at ``cuts``, then five single tokens; return all logits."""
    logits = []
    edges = [0, *cuts, LENGTH]
    with spans(cache):
        for a, b in pairwise(edges):
            logits.append(model(TOKENS[:, a:b], cache=cache))
            if between is not None and b != LENGTH:
                cache[:] = between(cache)
    logits += [model(TOKENS[:, i : i + 1], cache=cache) for i in range(5)]
    return mx.concatenate(logits, axis=1)


def assert_same(cache: list, logits: mx.array, whole: tuple) -> None:
    assert mx.abs(logits - whole[0]).max() < 1e-4
    for layer, state in dm.memory_state(cache).items():
        assert mx.abs(state - whole[1][layer]).max() < 1e-5


@pytest.mark.parametrize("step", [1, 7, 64])
def test_in_steps(model: nn.Module, whole: tuple, step: int) -> None:
    cache = make_prompt_cache(model)
    assert_same(cache, feed(model, cache, list(range(step, LENGTH, step))), whole)


@given(cuts=st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True).map(sorted))
@settings(max_examples=15, deadline=None)
def test_cut_anywhere(model: nn.Module, whole: tuple, cuts: list[int]) -> None:
    cache = make_prompt_cache(model)
    assert_same(cache, feed(model, cache, cuts), whole)


def test_saved_and_loaded_in_the_middle(model: nn.Module, whole: tuple, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.safetensors")

    def save_and_load(cache: list) -> list:
        save_prompt_cache(file, cache)
        return load_prompt_cache(file)

    cache = make_prompt_cache(model)
    assert_same(cache, feed(model, cache, [13, 50], save_and_load), whole)


def test_copied_in_the_middle(model: nn.Module, whole: tuple) -> None:
    originals = []

    def copied(cache: list) -> list:
        originals.append((list(cache), dm.memory_state(cache)))
        return copy.deepcopy(cache)

    cache = make_prompt_cache(model)
    assert_same(cache, feed(model, cache, [13, 50], copied), whole)
    for original, state in originals:
        for layer, now in dm.memory_state(original).items():
            assert mx.array_equal(now, state[layer])


@pytest.mark.parametrize("step", [5, 2048])
def test_by_mlx_lm(model: nn.Module, whole: tuple, step: int) -> None:
    cache = make_prompt_cache(model)
    steps = generate_step(
        TOKENS[0], model, prompt_cache=cache, prefill_step_size=step, max_tokens=1
    )
    with spans(cache):
        _, logprobs = next(steps)
    reference = whole[0][0, LENGTH - 1]
    assert mx.abs(logprobs - (reference - mx.logsumexp(reference))).max() < 1e-4


@pytest.mark.parametrize("side", ["left", "right"])
def test_in_a_padded_batch(model: nn.Module, whole: tuple, side: str) -> None:
    """Rows of 97, 60 and 3 tokens give what they give alone."""
    lengths = [LENGTH, 60, 3]
    padding = [LENGTH - n for n in lengths]
    cache = batch_cache(model, 3)
    rows = np.zeros((3, LENGTH), int)
    ids = np.full((2, 3, LENGTH), -1)
    for b, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(LENGTH - n, LENGTH)
        rows[b, place] = np.array(TOKENS)[0, :n]
        ids[:, b, place] = np.array([MESSAGES[0][:n], SENTENCES[0][:n]])
    for c in cache:
        if side == "right":
            c.prepare(lengths=lengths, right_padding=padding)
        else:
            c.prepare(left_padding=padding)
    with dm.write_spans(cache, ids[0], ids[1]):
        logits = mx.concatenate(
            [model(mx.array(rows[:, a:b]), cache=cache) for a, b in ((0, 40), (40, LENGTH))], axis=1
        )
    if side == "right":
        for c in cache:
            c.finalize()
    decoded = [model(mx.broadcast_to(TOKENS[:, i : i + 1], (3, 1)), cache=cache) for i in range(5)]
    state = dm.memory_state(cache)
    for b, n in enumerate(lengths):
        place = slice(0, n) if side == "right" else slice(LENGTH - n, LENGTH)
        if n == 3 and config_of(model).memory_write_granularity != "token":
            continue  # no id in this row: in a batch it writes nothing, alone it falls back
        alone = make_prompt_cache(model)
        with dm.write_spans(alone, ids[0, b : b + 1, place], ids[1, b : b + 1, place]):
            single = model(TOKENS[:, :n], cache=alone)
        assert mx.abs(logits[b, place] - single[0]).max() < 1e-4
        for i in range(5):
            step = model(TOKENS[:, i : i + 1], cache=alone)
            assert mx.abs(decoded[i][b] - step[0]).max() < 1e-4
        for layer, now in dm.memory_state(alone).items():
            assert mx.abs(state[layer][b] - now[0]).max() < 1e-5


def test_two_conversations_interleaved(model: nn.Module) -> None:
    """Token by token in turns on one model, each ends as it does alone."""
    prompts = [TOKENS[:, :20], TOKENS[:, 20:40]]

    def run(order: list[int]) -> list[tuple]:
        caches = [make_prompt_cache(model) for _ in prompts]
        last = [None, None]
        fed = [0, 0]
        for which in order:
            at = fed[which]
            last[which] = model(prompts[which][:, at : at + 1], cache=caches[which])
            fed[which] += 1
        return [(last[i], dm.memory_state(caches[i])) for i in range(2)]

    alone, mixed = run([0] * 20 + [1] * 20), run([0, 1] * 20)
    for (logits, state), (other, other_state) in zip(alone, mixed, strict=True):
        assert mx.array_equal(logits, other)
        assert all(mx.array_equal(state[layer], other_state[layer]) for layer in state)


def test_without_a_cache(model: nn.Module) -> None:
    """A call without a prompt cache runs its tokens from an empty memory."""
    first, second = model(TOKENS[:, :30]), model(TOKENS[:, :30])
    cache = make_prompt_cache(model)
    assert mx.array_equal(first, second)
    assert mx.abs(first - model(TOKENS[:, :30], cache=cache)).max() < 1e-4
