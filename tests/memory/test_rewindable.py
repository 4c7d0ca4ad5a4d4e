"""Tokens taken back: the memory is bit for bit what it was before them, and mlx-lm can draft."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import pytest
from golden import GOLDEN, base_model
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import (
    LRUPromptCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

import deltamem_mlx as dm
from deltamem_mlx.model.trail import Step, Trail

PROMPT = [5, 9, 33, 80, 12, 7, 44]
KINDS = ["tsw_qo", "msw_heads4", "ssw_message_spans"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / request.param / "adapter")


@pytest.fixture(scope="module")
def token_model() -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / "tsw_qo" / "adapter")


@pytest.fixture(scope="module")
def span_model() -> nn.Module:
    folder = GOLDEN / "ssw_message_spans" / "adapter"
    return dm.load_adapter(base_model("models/qwen3-tiny"), folder)


def states(cache: list) -> mx.array:
    return mx.stack(list(dm.memory_state(cache).values()))


def written(cache: list) -> list[list[int]]:
    return [layer.memory.written for layer in cache]


def feed(model: nn.Module, cache: list, tokens: list[int]) -> mx.array:
    logits = model(mx.array([tokens]), cache=cache)[:, -1]
    mx.eval([logits, *(c.state for c in cache)])
    return logits


@settings(deadline=None, max_examples=20)
@given(
    calls=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    most=st.integers(1, 12),
    back=st.integers(0, 12),
)
def test_trimming_gives_what_was_there_before(
    model: nn.Module, calls: list[int], most: int, back: int
) -> None:
    """Against a cache that is fed only what is left."""
    tokens = [3 + 7 * i % 80 for i in range(sum(calls))]
    cache = make_prompt_cache(model)
    dm.rewindable(cache, tokens=most)
    ends = [0]
    for n in calls:
        feed(model, cache, tokens[ends[-1] : ends[-1] + n])
        ends.append(ends[-1] + n)
    if back > min(most, len(tokens)):
        before = states(cache)
        with pytest.raises(ValueError, match=f"{back} tokens of a memory cannot be taken back"):
            trim_prompt_cache(cache, back)
        assert mx.array_equal(states(cache), before)
        assert cache[0].offset == len(tokens)
        return
    assert trim_prompt_cache(cache, back) == back
    left = len(tokens) - back
    plain = make_prompt_cache(model)
    for a, b in pairwise(sorted({*(e for e in ends if e < left), left, 0})):
        dm.rewindable(plain, tokens=most)
        feed(model, plain, tokens[a:b])
    assert cache[0].offset == left
    assert written(cache) == written(plain)
    assert mx.allclose(states(cache), states(plain), atol=1e-5)
    close = feed(model, cache, [11, 12]), feed(model, plain, [11, 12])
    assert mx.allclose(*close, atol=1e-4)


def test_what_is_fed_token_by_token_is_restored_exactly(model: nn.Module) -> None:
    cache = make_prompt_cache(model)
    feed(model, cache, PROMPT)
    dm.rewindable(cache, tokens=5)
    kept = []
    for token in PROMPT:
        kept.append((states(cache), copy.deepcopy(written(cache))))
        feed(model, cache, [token])
    for state, counts in reversed(kept[-5:]):
        trim_prompt_cache(cache, 1)
        assert mx.array_equal(states(cache), state)
        assert written(cache) == counts


def test_states_are_those_of_a_cache_that_keeps_no_way_back(model: nn.Module) -> None:
    """A prefill goes in one scan, its tail token by token."""
    one, other = make_prompt_cache(model), make_prompt_cache(model)
    tokens = [3 + 7 * i % 80 for i in range(70)]
    dm.rewindable(one, tokens=4)
    logits = feed(model, one, tokens), feed(model, other, tokens)
    assert mx.allclose(*logits, atol=1e-4)
    assert mx.allclose(states(one), states(other), atol=1e-5)


def test_a_batch_is_trimmed_together(token_model: nn.Module) -> None:
    rows = mx.array([PROMPT, PROMPT[::-1]])
    cache = make_prompt_cache(token_model)
    with dm.rewindable(cache, tokens=3):
        token_model(rows[:, :4], cache=cache)
        before = states(cache)
        token_model(rows[:, 4:], cache=cache)
        trim_prompt_cache(cache, 3)
    assert mx.array_equal(states(cache), before)


def test_an_ingest_is_taken_back_as_a_whole(span_model: nn.Module) -> None:
    ids = [[0, 0, 0, 1, 1, 1, 1]]
    cache = make_prompt_cache(span_model)
    feed(span_model, cache, [50, 51])
    before = states(cache)
    with dm.rewindable(cache, tokens=16):
        with dm.write_spans(cache, ids):
            feed(span_model, cache, PROMPT[:3])
            trim_prompt_cache(cache, 3)  # under way: nothing has been written, and it begins anew
            feed(span_model, cache, PROMPT)
        once = states(cache)
        with pytest.raises(ValueError, match="fed and written as one"):
            trim_prompt_cache(cache, 2)
        trim_prompt_cache(cache, 7)
        assert mx.array_equal(states(cache), before)
        trim_prompt_cache(cache, 0)
        with dm.write_spans(cache, ids):
            feed(span_model, cache, PROMPT)
        assert mx.array_equal(states(cache), once)


def test_tokens_after_an_ingest_in_one_call_can_be_taken_back(span_model: nn.Module) -> None:
    """As the first verification of a draft feeds the prompt's last token and the drafts."""
    cache, plain = make_prompt_cache(span_model), make_prompt_cache(span_model)
    with dm.rewindable(cache, tokens=4):
        with dm.write_spans(cache, [[0] * 5]):
            feed(span_model, cache, PROMPT)
        trim_prompt_cache(cache, 2)
    with dm.write_spans(plain, [[0] * 5]):
        feed(span_model, plain, PROMPT[:5])
    assert mx.allclose(states(cache), states(plain), atol=1e-5)


def test_copies_and_saved_files_have_no_way_back(token_model: nn.Module, tmp_path: object) -> None:
    cache = make_prompt_cache(token_model)
    dm.rewindable(cache, tokens=8)
    feed(token_model, cache, PROMPT)
    save_prompt_cache(f"{tmp_path}/c.safetensors", cache)
    batch = [layer.merge([layer, copy.deepcopy(layer)]) for layer in cache]
    others = {
        "deepcopy": copy.deepcopy(cache),
        "saved": load_prompt_cache(f"{tmp_path}/c.safetensors"),
        "merged": batch,
        "extracted": [layer.extract(1) for layer in batch],
    }
    assert {name: can_trim_prompt_cache(c) for name, c in others.items()} == dict.fromkeys(
        others, False
    )
    assert can_trim_prompt_cache(cache)


def test_mlx_lms_cache_of_prompts_never_trims_what_it_cannot(token_model: nn.Module) -> None:
    """It asks whether a cache can be trimmed, not by how much, and trims a copy."""
    cache = make_prompt_cache(token_model)
    feed(token_model, cache, PROMPT)
    lru = LRUPromptCache(max_size=4)
    with dm.rewindable(cache, tokens=2):
        feed(token_model, cache, [1, 2])
        lru.insert_cache(("m",), [*PROMPT, 1, 2], copy.deepcopy(cache))
    found, rest = lru.fetch_nearest_cache(("m",), [*PROMPT, 1, 9])
    assert found is None
    assert rest == [*PROMPT, 1, 9]


def test_forgetting_and_setting_end_the_way_back(token_model: nn.Module) -> None:
    for act in (
        dm.forget_context,
        dm.reset_memory,
        lambda cache: dm.set_memory_state(cache, dm.memory_state(cache)),
    ):
        cache = make_prompt_cache(token_model)
        dm.rewindable(cache, tokens=8)
        feed(token_model, cache, PROMPT)
        act(cache)
        with pytest.raises(ValueError, match="cannot be taken back"):
            trim_prompt_cache(cache, 1)


def test_a_filter_ends_the_way_back(token_model: nn.Module) -> None:
    """What is kept is of rows that have gone, or are in another place."""
    one, two = make_prompt_cache(token_model), make_prompt_cache(token_model)
    feed(token_model, one, PROMPT)
    feed(token_model, two, PROMPT[::-1])
    batch = [a.merge([a, b]) for a, b in zip(one, two, strict=True)]
    dm.rewindable(batch, tokens=4)
    token_model(mx.array([[6], [6]]), cache=batch)
    now = states(batch)
    for layer in batch:
        layer.filter([1, 0])
    with pytest.raises(ValueError, match="the last 0 can be"):
        trim_prompt_cache(batch, 1)
    assert mx.array_equal(states(batch), now[:, [1, 0]])


def test_a_long_way_back_costs_no_more_a_token() -> None:
    """Nothing goes through the steps when one is added."""

    class Counted(deque):
        def __iter__(self) -> Iterator[Step]:
            raise AssertionError("it went through all steps")

    trail = Trail(3)
    trail._steps = Counted()
    for tokens, length in ((1, 1), (1, 2), (2, 3), (1, 3), (5, 5)):
        trail.add(Step(tokens, None, [0], None))
        assert trail.length == length
    trail.clear()
    assert trail.length == 0


def test_it_ends_with_its_block(token_model: nn.Module) -> None:
    cache = make_prompt_cache(token_model)
    with dm.rewindable(cache, tokens=8) as same:
        assert same is cache
        feed(token_model, cache, PROMPT)
        assert can_trim_prompt_cache(cache)
    assert not can_trim_prompt_cache(cache)
    with pytest.raises(ValueError, match="rewindable"):
        cache[0].trim(1)


@pytest.mark.parametrize("tokens", [0, -1, True, 2.0, None])
def test_how_many_is_checked(token_model: nn.Module, tokens: object) -> None:
    with pytest.raises(ValueError, match=r"tokens is .*expected how many"):
        dm.rewindable(make_prompt_cache(token_model), tokens=tokens)


def half(model: nn.Module) -> nn.Module:
    """A draft: the plain model less a layer."""
    draft = base_model("models/qwen3-tiny")
    draft.model.layers = draft.model.layers[:1]
    return draft


@pytest.mark.parametrize("k", [1, 3, *(pytest.param(k, marks=pytest.mark.slow) for k in (2, 5))])
@pytest.mark.parametrize("draft", [half, lambda _: base_model("models/qwen3-tiny")])
@pytest.mark.parametrize("most", [1, 2, pytest.param(7, marks=pytest.mark.slow), 24])
def test_drafted_tokens_and_memory_are_those_of_plain_decoding(
    model: nn.Module, draft: Callable, k: int, most: int
) -> None:
    plain = make_prompt_cache(model)
    steps = generate_step(mx.array(PROMPT), model, max_tokens=most, prompt_cache=plain)
    expected = [int(token) for token, _ in steps]
    other = draft(model)
    cache = make_prompt_cache(model)
    with dm.rewindable(cache, tokens=k + 1):
        found = [
            int(token)
            for token, _, _ in speculative_generate_step(
                mx.array(PROMPT),
                model,
                other,
                num_draft_tokens=k,
                max_tokens=most,
                prompt_cache=cache + make_prompt_cache(other),
            )
        ]
    assert found == expected
    # mlx-lm leaves out the last token where the model itself chose it.
    held = cache[0].offset - len(PROMPT)
    assert held in (most - 1, most)
    replay = make_prompt_cache(model)
    feed(model, replay, [*PROMPT, *expected[:held]])
    assert written(cache) == written(replay)
    assert mx.allclose(states(cache), states(replay), atol=1e-5)
