"""Kinds of attention whose keys and values are not projections of their own, through all we do."""

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import made_up
import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from architectures import ARCHITECTURES, build, missing, slow_but
from mlx.utils import tree_flatten
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.models.cache import (
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
    trim_prompt_cache,
)
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import Client
from tiny import tiny_model_folder

import deltamem_mlx as dm
from deltamem_mlx.model.layer_cache import NoKeys
from deltamem_mlx.model.patch import memory_layers
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings
from deltamem_mlx.training.grad_checkpoint import checkpointed
from deltamem_mlx.training.passes import Passes

KINDS = (
    *("gemma3n", "gemma4 (E2B)", "gemma4 (26B-A4B)", "glm4_moe_lite", "deepseek_v32"),
    *("hunyuan", "kimi_linear", "longcat_flash", "mistral4"),
)
# What these say, the others say again: keys shared by layers or by none, latent ones, a state
# between, two attentions a layer.
FEW = ("gemma3n", "gemma4 (E2B)", "glm4_moe_lite", "kimi_linear", "longcat_flash")
TRAINED = [
    name
    for name, a in ARCHITECTURES.items()
    if not a.refused and a.trains and (a.heads == "qo" or name in ("qwen3", "phi3", "afm7"))
]
TOKENS = np.random.default_rng(1).integers(1, 90, 21).tolist()
PROMPTS = [TOKENS[:7], TOKENS[7:10], TOKENS[5:16]]
slow = partial(pytest.param, marks=pytest.mark.slow)


def attached(model: nn.Module, heads: str = "qo", **settings: object) -> nn.Module:
    """``model`` with a memory that changes what it says."""
    config = dm.DeltaMemConfig(
        rank=4,
        output_init="random",
        online_gain=1.0,
        beta_bias_init=0.0,
        delta_heads=tuple(heads),
        **settings,
    )
    return dm.attach(model, config, seed=2)


def ids(prompt: list[int]) -> list[list[int]]:
    return [[i // 3 for i in range(len(prompt))]]


def states(cache: list) -> np.ndarray:
    return np.stack([np.array(state) for state in dm.memory_state(cache).values()])


def logits_of(model: nn.Module, tokens: list[int], cache: list | None = None) -> np.ndarray:
    return np.array(model(mx.array([tokens]), cache=cache))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-4


@pytest.mark.parametrize("name", slow_but(TRAINED, {*KINDS, "qwen3", "phi3", "afm7"}))
def test_gradients_flow_through_the_memory_and_checkpoints_change_nothing(name: str) -> None:
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    model = attached(build(name))
    history, prompt = mx.array([TOKENS[:12]]), mx.array([TOKENS[12:]])
    passes, weights = Passes(model), model.trainable_parameters()

    def loss(weights: dict) -> tuple[mx.array, mx.array]:
        model.update(weights)
        written = passes.write(history, mx.ones(history.shape, mx.bool_))
        memories = passes.reading(mx.ones(prompt.shape, mx.bool_), written)
        logits = model(prompt, cache=passes.caches(memories))
        return nn.losses.cross_entropy(logits[:, :-1], prompt[:, 1:]).mean(), logits

    (_, logits), gradients = mx.value_and_grad(loss)(weights)
    mx.eval(logits, gradients)
    with checkpointed(model):
        _, again = mx.value_and_grad(loss)(weights)
        mx.eval(again)
    model.update(weights)
    for (key, gradient), (_, other) in zip(*map(tree_flatten, (gradients, again)), strict=True):
        assert mx.abs(gradient).max() > 0, key
        assert mx.allclose(gradient, other, atol=1e-5), key

    cache = make_prompt_cache(model)  # training sees what a conversation sees
    model(history, cache=cache)
    dm.forget_context(cache)
    with dm.read_only(cache):
        assert mx.abs(model(prompt, cache=cache) - logits).max() < 1e-4


@pytest.mark.parametrize("granularity", ["token", "message_mean"])
@pytest.mark.parametrize("name", slow_but(KINDS, FEW))
def test_a_batch_says_and_remembers_what_each_would_alone(name: str, granularity: str) -> None:
    model = attached(build(name), memory_write_granularity=granularity)
    alone = []
    for prompt in PROMPTS:
        cache = make_prompt_cache(model)
        with dm.write_spans(cache, ids(prompt)):
            model(mx.array([prompt]), cache=cache)
        said = [t for t, _ in generate_step(mx.array([1]), model, prompt_cache=cache, max_tokens=4)]
        alone.append((said, states(cache)))
    caches = [make_prompt_cache(model) for _ in PROMPTS]
    for cache, prompt in zip(caches, PROMPTS, strict=True):
        with dm.write_spans(cache, ids(prompt)):
            model(mx.array([prompt]), cache=cache)
    generator = BatchGenerator(model, max_tokens=4, prefill_batch_size=2)
    generator.insert([[1]] * 3, caches=caches)
    said: dict[int, list[int]] = {}
    left = {}
    while responses := generator.next_generated():
        for response in responses:
            said.setdefault(response.uid, []).append(response.token)
            left[response.uid] = response.prompt_cache or left.get(response.uid)
    generator.close()
    assert [said[i] for i in range(3)] == [tokens for tokens, _ in alone]
    for i, (_, expected) in enumerate(alone):
        assert close(states(left[i]), expected)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_cache_is_saved_copied_and_forgotten(name: str, tmp_path: Path) -> None:
    model = attached(build(name))
    cache = make_prompt_cache(model)
    first = logits_of(model, TOKENS[:9], cache)
    copied, file = copy.deepcopy(cache), str(tmp_path / "cache.safetensors")
    save_prompt_cache(file, cache)
    after = logits_of(model, TOKENS[9:], cache)
    for other in (copied, load_prompt_cache(file)):
        assert close(logits_of(model, TOKENS[9:], other), after)
        assert close(states(other), states(cache))

    before = states(cache)
    dm.forget_context(cache)
    assert np.array_equal(states(cache), before)
    fresh = make_prompt_cache(model)
    dm.set_memory_state(fresh, dm.memory_state(cache))
    assert close(logits_of(model, TOKENS[:9], cache), logits_of(model, TOKENS[:9], fresh))
    assert not close(logits_of(model, TOKENS[:9], cache), first)
    dm.reset_memory(cache)
    assert not states(cache).any()


@pytest.mark.parametrize("name", ["gemma3n", "gemma4 (E2B)", "glm4_moe_lite", "longcat_flash"])
def test_tokens_are_taken_back_exactly(name: str) -> None:
    model = attached(build(name))
    cache = make_prompt_cache(model)
    logits_of(model, TOKENS[:3], cache)
    untouched = copy.deepcopy(cache)
    with dm.rewindable(untouched, tokens=3):
        expected = logits_of(model, TOKENS[3:5], untouched)
    with dm.rewindable(cache, tokens=3):
        logits_of(model, TOKENS[10:13], cache)
        assert trim_prompt_cache(cache, 3) == 3
        assert np.array_equal(logits_of(model, TOKENS[3:5], cache), expected)


@pytest.mark.parametrize("name", slow_but(KINDS, FEW))
def test_an_adapter_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    model = attached(build(name))
    dm.save_adapter(model, tmp_path / "adapter")
    again = dm.load_adapter(build(name), tmp_path / "adapter")
    assert list(memory_layers(again)) == list(memory_layers(model))
    ours, theirs = (logits_of(m, TOKENS, make_prompt_cache(m)) for m in (again, model))
    assert np.array_equal(ours, theirs)


def test_queries_twice_as_wide_as_the_values_are_no_output_gate() -> None:
    sides = dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), 8)
    model = attached(build("deepseek_v3", hidden_size=64, head_dim=32, **sides))
    projections = memory_layers(model)[0].memory_projections
    assert (projections.width("q"), projections.gated) == (64, 0)
    whole = logits_of(model, TOKENS, make_prompt_cache(model))
    cache = make_prompt_cache(model)
    pieces = [logits_of(model, TOKENS[i : i + 4], cache) for i in range(0, len(TOKENS), 4)]
    assert close(np.concatenate(pieces, axis=1), whole)


def test_one_of_two_attentions_a_layer_can_be_named(tmp_path: Path) -> None:
    model = attached(build("longcat_flash"), target_layers=(1, 2))
    assert list(dm.memory_state(make_prompt_cache(model))) == [1, 2]
    dm.save_adapter(model, tmp_path / "adapter")
    assert list(memory_layers(dm.load_adapter(build("longcat_flash"), tmp_path / "adapter"))) == [
        1,
        2,
    ]
    named = attached(build("longcat_flash"), target_modules=("self_attn.1",))
    assert [a.memory_layer for a in memory_layers(named).values()] == [0, 1]
    with pytest.raises(ValueError, match=r"target_layers \[4\]: the model has layers 0 to 3"):
        attached(build("longcat_flash"), target_layers=(4,))


def test_layers_without_keys_of_their_own_have_entries_of_their_own() -> None:
    model = attached(build("gemma4 (E2B)"))
    plain = len(make_prompt_cache(build("gemma4 (E2B)")))
    cache = make_prompt_cache(model)
    assert (plain, len(cache)) == (5, 10)
    assert all(entry.kv is None and type(entry.caches[0]) is NoKeys for entry in cache[plain:])
    assert not any(hasattr(entry, "to_quantized") for entry in cache[plain:])
    logits_of(model, TOKENS, cache)
    assert all(entry.nbytes == entry.memory.nbytes > 0 for entry in cache[plain:])


def test_layers_that_share_a_kv_cache_share_an_entry() -> None:
    model = attached(build("gemma3n"))
    assert [len(entry.memories) for entry in make_prompt_cache(model)] == [2, 2]
    assert sorted(
        memory.layer for entry in make_prompt_cache(model) for memory in entry.memories
    ) == [*(0, 1, 2, 3)]


# Architectures that no line of the package knows.


@pytest.mark.parametrize(
    ("kind", "count", "heads", "layers"),
    [
        (made_up.Grouped, 1, "qkvo", 4),
        (made_up.Latent, 1, "qo", 4),
        (made_up.Borrowing, 1, "qo", 2),
        (made_up.Latent, 2, "qo", 8),
    ],
    ids=["packed in groups", "latent", "borrowed keys", "two a layer"],
)
def test_an_architecture_that_nobody_named_gets_a_memory(
    kind: type[nn.Module], count: int, heads: str, layers: int
) -> None:
    plain = logits_of(made_up.made_up(kind, count), TOKENS)
    model = dm.attach(
        made_up.made_up(kind, count),
        dm.DeltaMemConfig(rank=4, output_init="zero", delta_heads=tuple(heads)),
    )
    assert np.array_equal(logits_of(model, TOKENS, make_prompt_cache(model)), plain)
    model = attached(dm.detach(model), heads)
    assert len(memory_layers(model)) >= layers
    whole = logits_of(model, TOKENS, make_prompt_cache(model))
    assert not close(whole, plain)
    cache = make_prompt_cache(model)
    pieces = [logits_of(model, TOKENS[i : i + 4], cache) for i in range(0, len(TOKENS), 4)]
    assert close(np.concatenate(pieces, axis=1), whole)


def test_rows_of_a_packed_projection_in_groups_reach_their_own_head() -> None:
    model = attached(made_up.made_up(made_up.Grouped), "kv")
    attention = memory_layers(model)[0]
    weight = attention["delta_k_proj"]
    for layer in memory_layers(model).values():
        layer["delta_k_proj"] = layer["delta_v_proj"] = mx.zeros_like(weight)
    kept = []
    for rows in (0, made_up.SIDE):  # none, and those of the second KV head
        on = mx.arange(weight.shape[0])[:, None] >= weight.shape[0] - rows
        attention["delta_k_proj"] = mx.where(on, weight, 0)
        cache = make_prompt_cache(model)
        logits_of(model, TOKENS, cache)
        kept.append((np.array(cache[0].kv.keys), np.array(cache[0].kv.values)))
    (keys, values), (other_keys, other_values) = kept
    assert np.array_equal(keys[:, 0], other_keys[:, 0])
    assert not np.array_equal(keys[:, 1], other_keys[:, 1])
    assert np.array_equal(values, other_values)


def test_packed_rows_in_an_order_that_is_not_known_are_refused_with_a_sentence() -> None:
    model = made_up.made_up(made_up.Swapped)
    with pytest.raises(ValueError, match="query_key_value whose rows lie in no order"):
        attached(model)
    assert np.array_equal(
        logits_of(model, TOKENS), logits_of(made_up.made_up(made_up.Swapped), TOKENS)
    )


def test_a_cache_of_the_models_own_is_emptied_and_not_saved_where_it_could_not_be_read(
    tmp_path: Path,
) -> None:
    folder = tiny_model_folder(tmp_path / "model", "deepseek_v41")
    model, tokenizer = mlx_lm.load(str(folder))
    session = dm.MemorySession(attached(model), tokenizer)
    session.remember("my name is ada")
    session.forget_context()
    assert all(entry.kv.offset == 0 for entry in session.cache)
    with pytest.raises(ValueError, match=r"cannot read the context .* \(LayerCache\)"):
        session.save(tmp_path / "session")
    session.save(tmp_path / "memory.safetensors")
    restored = dm.MemorySession.restore(tmp_path / "memory.safetensors", model, tokenizer)
    assert np.array_equal(states(restored.cache), states(session.cache))


@pytest.mark.parametrize("name", slow_but(KINDS, FEW))
def test_a_session_goes_on_from_its_folder(name: str, tmp_path: Path) -> None:
    model, tokenizer = mlx_lm.load(str(tiny_model_folder(tmp_path / "model", name)))
    session = dm.MemorySession(attached(model), tokenizer)
    session.remember("my name is ada")
    session.ask("who?", max_tokens=6)
    session.save(tmp_path / "session")
    restored = dm.MemorySession.restore(tmp_path / "session", model, tokenizer)
    assert str(restored.ask("again?", max_tokens=6)) == str(session.ask("again?", max_tokens=6))
    assert close(states(restored.cache), states(session.cache))


# Adapters of ports that keep the queries and the output gate apart.


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_next"])
def test_an_adapter_for_the_queries_alone_goes_round_the_gate(name: str, tmp_path: Path) -> None:
    model = attached(build(name))
    attention = memory_layers(model)[1]
    heads, side = 4, attention["delta_q_proj"].shape[0] // 8
    rows = attention["delta_q_proj"].reshape(heads, 2, side, -1)
    rows = mx.stack([rows[:, 0], mx.zeros_like(rows[:, 1])], axis=1)
    attention["delta_q_proj"] = rows.flatten(0, 2)
    expected = logits_of(model, TOKENS, make_prompt_cache(model))
    dm.save_adapter(model, tmp_path / "whole")

    attention["delta_q_proj"] = rows[:, 0].flatten(0, 1)  # as the other port has it
    dm.save_adapter(model, tmp_path / "queries")
    loaded = dm.load_adapter(build(name), tmp_path / "queries")
    assert np.array_equal(memory_layers(loaded)[1]["delta_q_proj"], rows.flatten(0, 2))
    assert np.array_equal(logits_of(loaded, TOKENS, make_prompt_cache(loaded)), expected)
    whole = dm.load_adapter(build(name), tmp_path / "whole")
    assert np.array_equal(logits_of(whole, TOKENS, make_prompt_cache(whole)), expected)


def test_half_the_rows_are_refused_where_there_is_no_gate(tmp_path: Path) -> None:
    model = attached(build("qwen3"))
    for attention in memory_layers(model).values():
        attention["delta_q_proj"] = attention["delta_q_proj"][:32]
    dm.save_adapter(model, tmp_path / "half")
    with pytest.raises(ValueError, match=r"delta_q_proj: adapter \[32, 4\], model \[64, 4\]"):
        dm.load_adapter(build("qwen3"), tmp_path / "half")


ONE_BY_ONE = dict(decode_concurrency=1, prompt_concurrency=1)


@pytest.mark.parametrize(
    ("name", "batching"),
    [
        *((name, {}) for name in ("gemma3n", "kimi_linear", "longcat_flash")),
        *(slow(name, {}) for name in ("gemma4_text", "deepseek_v32", "hunyuan")),
        # mlx-lm makes no batches of their prompt caches.
        ("deepseek_v41", {}),
        slow("llama4", {}),
        # Those that it makes of these decode wrongly.
        ("jamba", ONE_BY_ONE),
        slow("gpt_bigcode", ONE_BY_ONE),
    ],
)
def test_a_server_answers_as_a_session_does_and_goes_on_after_a_restart(
    name: str, batching: dict[str, int], tmp_path: Path
) -> None:
    folder = tiny_model_folder(tmp_path / "model", name)

    def pair() -> tuple[nn.Module, TokenizerWrapper]:
        """One for each thread: Gemma 3n clips its weights anew in every call, in that thread."""
        model, tokenizer = mlx_lm.load(str(folder))
        return attached(model), tokenizer

    used = pair()
    settings = ServeSettings(port=0, memory_dir=tmp_path / "memories", **batching)
    sessions = {key: dm.MemorySession(*used) for key in ("anna", "ben")}
    for asked in ("where is it?", "and now?"):
        texts = {key: f"{key} {asked}" for key in sessions}
        with Server(*pair(), "tiny", settings) as serving, ThreadPoolExecutor(2) as threads:
            ask = partial(Client(serving.url).chat, max_tokens=6, memory={"context": "drop"})
            replies = list(threads.map(ask, texts.values(), texts))
        for (key, session), reply in zip(sessions.items(), replies, strict=True):
            session.forget_context()
            assert reply.text == str(session.ask(texts[key], max_tokens=6))


@pytest.mark.parametrize("name", ["gemma3n", "llama"])
def test_what_a_model_keeps_beside_its_parameters_is_there_in_any_thread(
    name: str, tmp_path: Path
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    changed = {"rope_scaling": scaling} if name == "llama" else {}
    model = attached(mlx_lm.load(str(tiny_model_folder(tmp_path, name, **changed)))[0])
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(logits_of, model, TOKENS).result().any()
