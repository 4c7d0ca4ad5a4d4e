"""What mlx-lm does to prompt caches, done to ours."""

import copy
import gc
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import GOLDEN, base_model
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    KVCache,
    LRUPromptCache,
    QuantizedKVCache,
    RotatingKVCache,
    can_trim_prompt_cache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)

import deltamem_mlx as dm
from deltamem_mlx.model.cache import MemoryCache
from deltamem_mlx.model.layer_cache import DeltaMemCache

pytestmark = pytest.mark.fused

PROMPTS = [[5, 9, 33, 80, 12, 7, 44], [61, 3, 18], [90, 22, 22, 41, 8, 70, 11, 36, 54, 2, 19]]


@pytest.fixture(scope="module", params=["tsw_qo", "msw_heads4", "ssw_message_spans"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / request.param / "adapter")


@pytest.fixture(scope="module")
def token_model() -> nn.Module:
    return dm.load_adapter(base_model("models/qwen3-tiny"), GOLDEN / "tsw_qo" / "adapter")


def ids(prompt: list[int]) -> list[list[int]]:
    return [[i // 3 for i in range(len(prompt))]]


def greedy(model: nn.Module, cache: list, prompt: list[int], n: int = 6) -> list[int]:
    steps = generate_step(mx.array(prompt), model, prompt_cache=cache, max_tokens=n)
    with dm.write_spans(cache, ids(prompt)):
        tokens = [next(steps)[0]]
    return tokens + [token for token, _ in steps]


def states(cache: list) -> mx.array:
    return mx.stack(list(dm.memory_state(cache).values()))


def fed(model: nn.Module, prompt: list[int]) -> list:
    cache = make_prompt_cache(model)
    model(mx.array([prompt]), cache=cache)
    return cache


@pytest.mark.parametrize("step", [2, 2048])
def test_batch_generator_equals_one_by_one(model: nn.Module, step: int) -> None:
    """Prompts of different lengths, one batch filling up and emptying, with their spans."""
    alone, caches = [], []
    for prompt in PROMPTS:
        caches.append(make_prompt_cache(model))
        alone.append((greedy(model, caches[-1], prompt), states(caches[-1])))

    generator = BatchGenerator(model, max_tokens=6, prefill_step_size=step, prefill_batch_size=2)
    batch_caches = [make_prompt_cache(model) for _ in PROMPTS]
    generator.insert(PROMPTS, caches=batch_caches, max_tokens=[6, 3, 6])
    tokens: dict[int, list[int]] = {}
    final = {}
    with ExitStack() as spans:
        for cache, prompt in zip(batch_caches, PROMPTS, strict=True):
            spans.enter_context(dm.write_spans(cache, ids(prompt)))
        while responses := generator.next_generated():
            for response in responses:
                tokens.setdefault(response.uid, []).append(response.token)
                if response.prompt_cache is not None:
                    final[response.uid] = response.prompt_cache
    generator.close()
    assert [tokens[i] for i in range(3)] == [alone[0][0], alone[1][0][:3], alone[2][0]]
    for i in (0, 2):
        assert mx.abs(states(final[i]) - alone[i][1]).max() < 1e-5
        # A cache that left a batch can be used like any other.
        after = model(mx.array([[50]]), cache=final[i])
        assert mx.abs(after - model(mx.array([[50]]), cache=caches[i])).max() < 1e-4


def test_merge_extract_filter_extend(token_model: nn.Module) -> None:
    caches = [fed(token_model, prompt) for prompt in PROMPTS]
    expected = [states(cache) for cache in caches]

    def merged(which: list[int]) -> list:
        layers = zip(*(caches[i] for i in which), strict=True)
        return [layer[0].merge(list(layer)) for layer in layers]

    batch = merged([0, 1])
    for layer, more in zip(batch, merged([2]), strict=True):
        layer.extend(more)
    assert mx.array_equal(states(batch), mx.concatenate(expected, axis=1))
    assert batch[0].memory.written == [len(p) for p in PROMPTS]
    for i in range(3):
        single = [layer.extract(i) for layer in batch]
        assert all(type(layer) is DeltaMemCache for layer in single)
        assert mx.array_equal(states(single), expected[i])
    for layer in batch:
        layer.filter([2, 0])
    assert mx.array_equal(states(batch), mx.concatenate([expected[2], expected[0]], axis=1))
    logits = token_model(mx.array([[50], [50]]), cache=batch)
    for row, i in enumerate((2, 0)):
        alone = token_model(mx.array([[50]]), cache=copy.deepcopy(caches[i]))
        assert mx.abs(logits[row] - alone[0]).max() < 1e-4


def test_extend_when_one_side_is_fresh(token_model: nn.Module) -> None:
    used, fresh = fed(token_model, PROMPTS[0]), make_prompt_cache(token_model)
    batch = [a.merge([a]) for a in used]
    for a, b in zip(batch, fresh, strict=True):
        a.extend(b.merge([b]))
    assert mx.array_equal(states(batch)[:, 0], states(used)[:, 0])
    assert not states(batch)[:, 1].any()


def test_read_only_rows_of_a_batch(token_model: nn.Module) -> None:
    """A read-only conversation stays so inside a batch whose other rows write."""
    held, free = fed(token_model, PROMPTS[0]), fed(token_model, PROMPTS[2])
    before = states(held)
    with dm.read_only(held):
        batch = [a.merge([a, b]) for a, b in zip(held, free, strict=True)]
    for tokens in (mx.array([[4, 5, 6], [4, 5, 6]]), mx.array([[7], [7]])):
        token_model(tokens, cache=batch)
        token_model(tokens[1:], cache=free)
    assert mx.array_equal(states(batch)[:, 0], before[:, 0])
    assert mx.abs(states(batch)[:, 1] - states(free)[:, 0]).max() < 1e-5
    assert batch[0].memory.written == [len(PROMPTS[0]), len(PROMPTS[2]) + 4]


def test_read_only_keeps_the_state_bit_identical(model: nn.Module) -> None:
    cache = fed(model, PROMPTS[0])
    before = states(cache)
    with dm.read_only(cache):
        reading = model(mx.array([PROMPTS[1]]), cache=cache)
        model(mx.array([[8]]), cache=cache)
    assert mx.array_equal(states(cache), before)
    empty = make_prompt_cache(model)
    assert mx.abs(reading - model(mx.array([PROMPTS[1]]), cache=empty)).max() > 1e-2
    model(mx.array([[8]]), cache=cache)
    assert not mx.array_equal(states(cache), before)


def test_read_only_on_a_fresh_cache_of_a_batch(token_model: nn.Module) -> None:
    cache = make_prompt_cache(token_model)
    with dm.read_only(cache):
        token_model(mx.array([[1, 2], [3, 4]]), cache=cache)
    assert not states(cache).any()
    token_model(mx.array([[1, 2], [3, 4]]), cache=cache)
    assert states(cache).any()


def test_trim_is_refused_without_a_way_back(model: nn.Module) -> None:
    cache = fed(model, PROMPTS[0])
    before = states(cache)
    assert not can_trim_prompt_cache(cache)
    assert trim_prompt_cache(cache, 2) == 0
    assert cache[0].offset == len(PROMPTS[0])
    assert mx.array_equal(states(cache), before)
    with pytest.raises(ValueError, match="cannot be trimmed"):
        cache[0].trim(1)


def test_speculative_decoding_is_refused_without_a_way_back(token_model: nn.Module) -> None:
    from mlx_lm.generate import speculative_generate_step

    draft = base_model("models/qwen3-tiny")
    steps = speculative_generate_step(mx.array(PROMPTS[0]), token_model, draft)
    with pytest.raises(ValueError, match=r"trimmable.*DeltaMemCache"):
        next(steps)


@pytest.mark.parametrize("start", [0, 12])
def test_kv_bits(token_model: nn.Module, start: int) -> None:
    """The KV cache is quantized, the memory is not, and what it holds stays close."""
    prompt = PROMPTS[0] * 4
    model = wide_head_model()
    plain, quantized = make_prompt_cache(model), make_prompt_cache(model)
    for cache, bits in ((plain, None), (quantized, 8)):
        steps = generate_step(
            mx.array(prompt),
            model,
            prompt_cache=cache,
            max_tokens=4,
            kv_bits=bits,
            kv_group_size=32,
            quantized_kv_start=start,
        )
        assert len(list(steps)) == 4
    assert all(isinstance(c, DeltaMemCache) for c in quantized)
    assert all(isinstance(c.kv, QuantizedKVCache) for c in quantized)
    assert states(quantized).dtype == mx.float32
    assert mx.abs(states(quantized) - states(plain)).max() < 0.05
    assert quantized[0].memory.written == plain[0].memory.written


def wide_head_model() -> nn.Module:
    """Heads wide enough for a group of the KV quantization."""
    from tiny import tiny_model

    model = tiny_model("qwen3", head_dim=32)
    return dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)


def test_max_kv_size(token_model: nn.Module) -> None:
    """mlx-lm's option still gives a sliding window, and the memory keeps what that loses."""
    window, whole = make_prompt_cache(token_model, max_kv_size=8), make_prompt_cache(token_model)
    assert all(isinstance(c.kv, RotatingKVCache) and c.kv.max_size == 8 for c in window)
    assert all(isinstance(c.kv, KVCache) for c in whole)
    prompt = PROMPTS[2] * 3
    steps = generate_step(mx.array(prompt), token_model, prompt_cache=window, max_tokens=10)
    assert len(list(steps)) == 10
    assert window[0].kv.keys.shape[2] <= len(prompt)
    assert window[0].memory.written == [len(prompt) + 10]
    # The first layer's memory does not depend on attention, so the window does not change it.
    tokens = [t for t in prompt]
    token_model(mx.array([tokens]), cache=whole)
    first = make_prompt_cache(token_model, max_kv_size=8)
    for token in tokens:
        token_model(mx.array([[token]]), cache=first)
    assert mx.abs(dm.memory_state(first)[0] - dm.memory_state(whole)[0]).max() < 1e-5


def test_max_kv_size_through_generate_step(token_model: nn.Module) -> None:
    steps = generate_step(mx.array(PROMPTS[2] * 3), token_model, max_tokens=3, max_kv_size=8)
    limited = [token for token, _ in steps]
    steps = generate_step(mx.array(PROMPTS[2] * 3), token_model, max_tokens=3)
    assert limited != [token for token, _ in steps] or len(limited) == 3


def test_lru_prompt_cache(token_model: nn.Module) -> None:
    """A prompt that continues a cached one reuses it; one that diverges does not."""
    lru = LRUPromptCache()
    prompt = PROMPTS[0] + PROMPTS[2]
    cache = fed(token_model, PROMPTS[0])
    lru.insert_cache("m", PROMPTS[0], cache)
    got, rest = lru.fetch_nearest_cache("m", prompt)
    assert rest == PROMPTS[2]
    logits = token_model(mx.array([rest]), cache=got)
    reference = token_model(mx.array([prompt]))[:, -len(rest) :]
    assert mx.abs(logits - reference).max() < 1e-4
    assert cache[0].offset == len(PROMPTS[0])
    assert lru.fetch_nearest_cache("m", [*PROMPTS[0][:4], 1, 1]) == (None, [*PROMPTS[0][:4], 1, 1])
    assert lru.fetch_nearest_cache("m", PROMPTS[0][:5])[0] is None
    assert lru.nbytes == sum(c.nbytes for c in cache) > 0


def test_a_saved_cache_restores_everything(model: nn.Module, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.safetensors")
    cache = make_prompt_cache(model)
    tokens = greedy(model, cache, PROMPTS[0])
    with dm.read_only(cache):
        save_prompt_cache(file, cache)
    loaded = load_prompt_cache(file)
    for a, b in zip(cache, loaded, strict=True):
        assert type(b) is DeltaMemCache and type(b.kv) is type(a.kv)
        assert mx.array_equal(a.memory.matrix, b.memory.matrix)
        assert b.memory.written == a.memory.written and b.memory.read_only == [True]
        b.memory.read_only = [False]
    following = mx.array([[tokens[-1]]])
    assert mx.array_equal(model(following, cache=cache), model(following, cache=loaded))


def test_a_fresh_cache_can_be_saved(token_model: nn.Module, tmp_path: Path) -> None:
    file = str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, make_prompt_cache(token_model))
    loaded = load_prompt_cache(file)
    tokens = mx.array([PROMPTS[0]])
    found, expected = token_model(tokens, cache=loaded), token_model(tokens)
    assert mx.allclose(found, expected, rtol=0, atol=1e-5)


def test_forget_context_keeps_the_memory(model: nn.Module) -> None:
    cache = fed(model, PROMPTS[0])
    before = states(cache)
    dm.forget_context(cache)
    assert mx.array_equal(states(cache), before)
    assert all(c.offset == 0 and c.empty() for c in cache)
    other = make_prompt_cache(model)
    dm.set_memory_state(other, {i: s for i, s in enumerate(before)})
    tokens = mx.array([PROMPTS[1]])
    assert mx.array_equal(model(tokens, cache=cache), model(tokens, cache=other))


def test_forget_context_of_every_kind(token_model: nn.Module) -> None:
    limited = make_prompt_cache(token_model, max_kv_size=6)
    token_model(mx.array([PROMPTS[2]]), cache=limited)
    batch = [c.merge([c, c]) for c in fed(token_model, PROMPTS[0])]
    for cache in (limited, batch):
        before, kind = states(cache), type(cache[0].kv)
        dm.forget_context(cache)
        assert type(cache[0].kv) is kind
        rows = before.shape[1]
        logits = token_model(mx.array([PROMPTS[1]] * rows), cache=cache)
        fresh = make_prompt_cache(token_model)
        dm.set_memory_state(fresh, {i: s[:1] for i, s in enumerate(before)})
        reference = token_model(mx.array([PROMPTS[1]]), cache=fresh)
        assert mx.abs(logits - reference).max() < 1e-4


def test_reset_memory_keeps_the_context(model: nn.Module) -> None:
    cache = fed(model, PROMPTS[0])
    dm.reset_memory(cache)
    assert not states(cache).any()
    assert cache[0].offset == len(PROMPTS[0]) and cache[0].memory.written == [0]


def test_set_memory_state_checks_everything(token_model: nn.Module) -> None:
    cache = make_prompt_cache(token_model)
    good = dm.memory_state(fed(token_model, PROMPTS[0]))
    bad = {0: good[0], 1: mx.zeros((1, 1, 4, 4)), 7: good[0]}
    with pytest.raises(ValueError) as error:
        dm.set_memory_state(cache, bad)
    for part in (
        "layer 1: shape [1, 1, 4, 4], expected [1, 1, 8, 8]",
        "layer 7",
        "layer 2: missing",
    ):
        assert part in str(error.value)
    with pytest.raises(ValueError, match="layer 1: NaN or infinite values"):
        dm.set_memory_state(cache, good | {1: good[1] * float("nan")})
    assert not states(cache).any()
    dm.set_memory_state(cache, {i: np.array(state) for i, state in good.items()})
    assert mx.array_equal(states(cache), mx.stack(list(good.values())))


def test_a_cache_without_memory_is_refused(token_model: nn.Module) -> None:
    plain = [KVCache() for _ in token_model.layers]
    for call in (dm.memory_state, dm.reset_memory, dm.forget_context):
        with pytest.raises(ValueError, match="holds no memory"):
            call(plain)
    with pytest.raises(TypeError, match="make_prompt_cache"):
        token_model(mx.array([[1, 2]]), cache=plain)


def test_another_batch_size_is_refused(token_model: nn.Module) -> None:
    cache = make_prompt_cache(token_model)
    dm.set_memory_state(cache, dm.memory_state(fed(token_model, PROMPTS[0])))
    with pytest.raises(ValueError, match="holds 1 conversations, the call has 2"):
        token_model(mx.array([[1], [2]]), cache=cache)


def test_a_memory_of_another_adapter_is_refused(token_model: nn.Module) -> None:
    cache = make_prompt_cache(token_model)
    heads = cache[0].memory.heads
    for tokens in ([[3]], [[3, 4, 5]]):
        cache[0].memory.heads = heads + 1
        with pytest.raises(ValueError, match=f"layer 0 has {heads + 1} states of rank"):
            token_model(mx.array(tokens), cache=cache)
    cache[0].memory.heads = heads
    token_model(mx.array([[3]]), cache=cache)


def test_write_spans_checks_its_ids() -> None:
    model = dm.load_adapter(
        base_model("models/qwen3-tiny"), GOLDEN / "ssw_sentence_spans" / "adapter"
    )
    cache = make_prompt_cache(model)
    for message_ids, sentence_ids in (
        ([0, 1, 2], None),
        ([[0, 1], [0]], None),
        ([[0.5, 1.0]], None),
        ([[0, 1]], [[0, 1, 2]]),
        ([[]], None),
    ):
        with pytest.raises(ValueError), dm.write_spans(cache, message_ids, sentence_ids):
            pass
    with (
        pytest.raises(ValueError, match=r"ids for \[3\] tokens, but \[2\]"),
        dm.write_spans(cache, [[0, 0, 1]], [[0, 0, 1]]),
    ):
        model(mx.array([[1, 2]]), cache=cache)
    model(mx.array([[1, 2]]), cache=cache)  # and the cache can still be used


def test_an_error_inside_write_spans_leaves_a_usable_cache() -> None:
    model = dm.load_adapter(
        base_model("models/qwen3-tiny"), GOLDEN / "ssw_message_spans" / "adapter"
    )
    cache = make_prompt_cache(model)
    with pytest.raises(KeyError), dm.write_spans(cache, [[0, 0, 1]]):
        raise KeyError
    assert cache[0].memory.ingest is None


def test_memories_of_different_adapters_do_not_merge() -> None:
    with pytest.raises(ValueError, match="different adapters"):
        MemoryCache.merge([MemoryCache(0, 1, 8), MemoryCache(0, 1, 4)])


def test_decoding_does_not_grow_the_graph(token_model: nn.Module) -> None:
    """Nothing but the state hangs on from step to step: memory in use stays flat."""
    cache = fed(token_model, PROMPTS[0])
    gc.collect()
    mx.synchronize()
    used = []
    for _ in range(60):
        mx.eval(token_model(mx.array([[5]]), cache=cache))
        used.append(mx.get_active_memory())
    assert used[-1] - used[20] < 4096


def test_rows_that_are_left_in_a_read_only_block_are_whole_memories(
    token_model: nn.Module,
) -> None:
    """Whatever is filtered there, they have a flag each, and write again if all did before."""
    batch = [c.merge([c] * 4) for c in fed(token_model, PROMPTS[0])]
    with dm.read_only(batch):
        for layer in batch:
            layer.filter([0, 1])
    assert batch[0].memory.read_only == [False, False]
    batch[0].memory.read_only = [True, False]
    with dm.read_only(batch):
        for layer in batch:
            layer.filter([0])
    assert batch[0].memory.read_only == [True] and batch[1].memory.read_only == [False]


def test_observers_see_what_is_fed_in_their_block_and_no_copies(token_model: nn.Module) -> None:
    cache, seen = make_prompt_cache(token_model), []
    with dm.observe(cache, lambda layer, _: seen.append(("outer", layer))):
        with dm.observe(cache, lambda layer, _: seen.append(("inner", layer))):
            token_model(mx.array([[3]]), cache=cache)
        other = copy.deepcopy(cache)
        token_model(mx.array([[4]]), cache=cache)
    assert seen == [(who, layer) for who in ("inner", "outer") for layer in range(3)]
    token_model(mx.array([[5]]), cache=other)
    token_model(mx.array([[5]]), cache=cache)
    assert len(seen) == 6


@pytest.fixture(scope="module")
def span_model() -> nn.Module:
    folder = GOLDEN / "ssw_message_spans" / "adapter"
    return dm.load_adapter(base_model("models/qwen3-tiny"), folder)


def test_tokens_of_an_ingest_count_when_they_are_written(span_model: nn.Module) -> None:
    cache = make_prompt_cache(span_model)
    with pytest.raises(ValueError, match="nothing was written"), dm.write_spans(cache, [[0] * 6]):
        span_model(mx.array([[1, 2, 3]]), cache=cache)
    assert not states(cache).any() and cache[0].memory.written == [0]
    with dm.write_spans(cache, [[0, 0, -1, 1]]):
        span_model(mx.array([[1, 2]]), cache=cache)
        assert cache[0].memory.written == [0]
        span_model(mx.array([[3, 4, 5]]), cache=cache)
    assert states(cache).any() and cache[0].memory.written == [4]


def test_ids_that_name_no_span_are_token_writes_in_a_batch_as_well(span_model: nn.Module) -> None:
    alone, named, tokens = make_prompt_cache(span_model), make_prompt_cache(span_model), [3, 4, 5]
    with ExitStack() as spans:
        spans.enter_context(dm.write_spans(alone, [[-1, -1, -1]]))
        spans.enter_context(dm.write_spans(named, [[0, 0, 1]]))
        pairs = copy.deepcopy([*zip(alone, named, strict=True)])
        both = [one.merge([one, two]) for one, two in pairs]
        span_model(mx.array([tokens]), cache=alone)
        span_model(mx.array([tokens]), cache=named)
        span_model(mx.array([tokens] * 2), cache=both)
    assert both[0].memory.written == [3, 3] == alone[0].memory.written + named[0].memory.written
    assert mx.abs(states(both)[:, 0] - states(alone)[:, 0]).max() < 1e-5
    assert mx.abs(states(both)[:, 1] - states(named)[:, 0]).max() < 1e-5
