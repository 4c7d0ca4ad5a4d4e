"""Every architecture of mlx-lm that can keep a memory, as a tiny random model."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import ARCHITECTURES, VOCAB, build, missing, slow_but
from mlx.utils import tree_flatten
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

PATCHED = [name for name, a in ARCHITECTURES.items() if not a.refused]
REFUSED = [name for name, a in ARCHITECTURES.items() if a.refused]
REQUIRED = (
    "qwen2 qwen3 qwen3_moe qwen3_5 qwen3_next llama llama4 smollm3 gemma2 gemma3_text phi3 olmo2 "
    "olmo3 granite granitemoehybrid cohere2 glm4 starcoder2 exaone4 lfm2 ministral3 seed_oss"
)
QUANTIZED = (
    *("qwen3", "phi3", "gpt_neox", "internlm2", "qwen3_next", "gemma4 (26B-A4B)"),
    *("gemma3n", "glm4_moe_lite", "deepseek_v32", "kimi_linear", "longcat_flash", "mistral4"),
)
# Every architecture is attached to and detached from each time; what follows takes a second each,
# so for those that are like one of these it is for the slow tests.
KINDS = {*REQUIRED.split(), *QUANTIZED, "gemma4_text", "mamba", "jamba", "deepseek_v2", "gpt_oss"}
RANK = 4
TOKENS = np.random.default_rng(1).integers(1, 90, 21).tolist()
TOLERANCE = 1e-4


def logits_of(model: nn.Module, tokens: list, cache: list | None = None) -> np.ndarray:
    """[B, T, V] float32, of the ids that every vocabulary here has."""
    return np.array(model(mx.array(tokens), cache=cache)[..., :VOCAB].astype(mx.float32))


def feed(model: nn.Module, tokens: list, cache: list, step: int) -> np.ndarray:
    """Logits [1, T, V] of ``tokens``, fed ``step`` at a time."""
    pieces = [tokens[i : i + step] for i in range(0, len(tokens), step)]
    return np.concatenate([logits_of(model, [piece], cache) for piece in pieces], axis=1)


def shape_of(model: nn.Module) -> dict[str, object]:
    """All that detach gives back, except the outputs."""
    return {
        "classes": [(name, type(module)) for name, module in model.named_modules()],
        "parameters": [(name, p.shape) for name, p in tree_flatten(model.parameters())],
        "frozen": [(name, set(vars(m).get("_no_grad", ()))) for name, m in model.named_modules()],
        "caches": [type(c) for c in make_prompt_cache(model)],
        "attributes": [(name, vars(m).keys() - {"_no_grad"}) for name, m in model.named_modules()],
    }


def expected_layers(name: str, model: nn.Module) -> list[int]:
    layers = ARCHITECTURES[name].layers
    return list(range(len(model.layers)) if layers is None else layers)


def attach_zero(name: str, model: nn.Module) -> nn.Module:
    """``model`` with an adapter that does nothing, for all heads that can be corrected."""
    heads = tuple(ARCHITECTURES[name].heads)
    config = dm.DeltaMemConfig(rank=RANK, output_init="zero", delta_heads=heads)
    mx.random.seed(0)  # of the numbers that are drawn afterwards, too
    return dm.attach(model, config)


def attach_random(name: str, model: nn.Module) -> nn.Module:
    """``model`` with adapter weights large enough that every correction shows in the logits."""
    attach_zero(name, model)
    adapter = tree_flatten(model.trainable_parameters())
    size = {"beta_bias": 1.0, "beta_proj": 0.3}
    weights = [
        (path, size.get(path.rpartition(".")[2], 0.2) * mx.random.normal(p.shape))
        for path, p in adapter
    ]
    return model.load_weights(weights, strict=False)


@pytest.fixture(scope="module", params=slow_but(PATCHED, KINDS))
def patched(request: pytest.FixtureRequest) -> Iterator[tuple[str, nn.Module]]:
    """An architecture's name, and its model with a random adapter."""
    if lacking := missing(request.param):
        pytest.skip(f"needs {lacking}")
    yield request.param, attach_random(request.param, build(request.param))


def states(cache: list) -> np.ndarray:
    """[layers, B, r, r]"""
    return np.stack([np.array(s[:, 0]) for s in dm.memory_state(cache).values()])


def assert_close(got: np.ndarray, expected: np.ndarray, what: str) -> None:
    assert got.shape == expected.shape, what
    error = np.abs(got - expected).max()
    assert error <= TOLERANCE, f"{what}: largest difference {error:.2e}"


def test_enough_architectures_are_patched():
    assert set(REQUIRED.split()) <= set(PATCHED)
    files = {name.split()[0] for name in PATCHED if not missing(name)}
    assert len(files) >= 115


@pytest.mark.parametrize("name", PATCHED)
def test_zero_adapter_is_identity_and_detach_restores(name: str):
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    model = build(name)
    plain = logits_of(model, [TOKENS])
    before = shape_of(model)
    cached = feed(model, TOKENS, make_prompt_cache(model), 16)

    attach_zero(name, model)
    cache = make_prompt_cache(model)
    assert list(dm.memory_state(cache)) == expected_layers(name, model)
    assert np.array_equal(logits_of(model, [TOKENS]), plain)
    assert np.array_equal(feed(model, TOKENS, cache, 16), cached)
    assert all(np.abs(s).max() > 0 for s in states(cache)), "a layer's memory was never written"

    dm.detach(model)
    assert shape_of(model) == before
    assert np.array_equal(logits_of(model, [TOKENS]), plain)


def test_every_way_of_feeding_gives_the_same(patched: tuple[str, nn.Module], tmp_path: Path):
    name, model = patched
    if not ARCHITECTURES[name].chunks:
        pytest.skip("mlx-lm's own logits depend on how this architecture is fed")
    whole_cache = make_prompt_cache(model)
    whole = logits_of(model, [TOKENS], whole_cache)
    if ARCHITECTURES[name].uncached:
        assert_close(logits_of(model, [TOKENS]), whole, "without a cache")
    for step in (1, 7):
        cache = make_prompt_cache(model)
        assert_close(feed(model, TOKENS, cache, step), whole, f"{step} at a time")
        assert_close(states(cache), states(whole_cache), f"state, {step} at a time")

    cache = make_prompt_cache(model)
    feed(model, TOKENS[:10], cache, 10)
    copied = copy.deepcopy(cache)
    if saves := ARCHITECTURES[name].saves:
        save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    assert_close(feed(model, TOKENS[10:], cache, 4), whole[:, 10:], "the rest")
    assert_close(feed(model, TOKENS[10:], copied, 4), whole[:, 10:], "from a copy")
    if saves:
        loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
        assert_close(feed(model, TOKENS[10:], loaded, 4), whole[:, 10:], "from a file")
        assert_close(states(loaded), states(whole_cache), "state from a file")


def test_padded_batch_equals_single(patched: tuple[str, nn.Module]):
    name, model = patched
    if (can := ARCHITECTURES[name].batch) == "none":
        pytest.skip("mlx-lm cannot batch this architecture")
    prompts, following = [TOKENS[:5], TOKENS[2:15], TOKENS], [7, 8, 9]
    lengths = [len(p) for p in prompts]
    padded = [p + [0] * (21 - n) for p, n in zip(prompts, lengths, strict=True)]

    fresh = zip(*(make_prompt_cache(model) for _ in prompts), strict=True)
    batch = [caches[0].merge(list(caches)) for caches in fresh]
    for c in batch:
        c.prepare(lengths=lengths, right_padding=[21 - n for n in lengths])
    step = 6 if can == "all" else 21
    pieces = [[p[i : i + step] for p in padded] for i in range(0, 21, step)]
    logits = np.concatenate([logits_of(model, piece, batch) for piece in pieces], axis=1)
    for c in batch:
        c.finalize()
    after_prefill = states(batch)
    decoded = [logits_of(model, [[t]] * 3, batch) for t in following]

    for row, prompt in enumerate(prompts):
        single = make_prompt_cache(model)
        expected = logits_of(model, [prompt], single)
        assert_close(logits[row : row + 1, : len(prompt)], expected, f"row {row}")
        assert_close(after_prefill[:, row], states(single)[:, 0], f"state of row {row}")
        for got, token in zip(decoded, following, strict=True):
            if can != "prefill":
                expected = logits_of(model, [[token]], single)
                assert_close(got[row : row + 1], expected, f"token {token} after row {row}")


TRAINABLE = [name for name in PATCHED if ARCHITECTURES[name].trains]


@pytest.mark.parametrize("name", slow_but(TRAINABLE, KINDS))
def test_a_gradient_reaches_every_weight_of_a_memory(name: str):
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    model = attach_random(name, build(name))
    tokens = mx.array([TOKENS[:9]])

    def loss(weights: dict) -> mx.array:
        model.update(weights)
        logits = model(tokens)[:, :-1, :VOCAB]
        return nn.losses.cross_entropy(logits, tokens[:, 1:]).mean()

    weights = model.trainable_parameters()
    gradients = tree_flatten(mx.grad(loss)(weights))
    mx.eval(gradients)
    model.update(weights)
    layers = len(expected_layers(name, model))
    assert len(gradients) == layers * (5 + len(ARCHITECTURES[name].heads))
    cut = {f"delta_{head}_proj" for head in "qkvo" if head not in ARCHITECTURES[name].trains}
    for key, gradient in gradients:
        flows = key.rpartition(".")[2] not in cut
        assert 0 < mx.abs(gradient).max() < mx.inf if flows else not gradient.any(), key


# Which rows a correction reaches. The keys and values in a KV cache, and what the output
# projection is given, tell them apart whatever a packed projection's layout is.


def kv_of(caches: Sequence) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Keys and values [heads, T, dims] of each KV cache."""
    for c in caches:
        if hasattr(c, "caches"):
            yield from kv_of(c.caches)
        elif getattr(c, "keys", None) is not None:
            yield tuple(np.array(a[0, :, : len(TOKENS)]) for a in (c.keys, c.values))


class Probe:
    """One patched layer of a model, of which single rows of a correction can be switched on."""

    def __init__(self, name: str, model: nn.Module):
        self.heads = ARCHITECTURES[name].heads
        # Layers that look at the keys of others are the last ones.
        number = expected_layers(name, model)[0 if "k" in self.heads else -1]
        self.model, self.attention = model, memory_layers(model)[number]
        self.names = ARCHITECTURES[name].projections.split()
        self.weights = {h: self.attention[f"delta_{h}_proj"] for h in self.heads}
        for module in model.modules():
            for head in self.weights:
                if f"delta_{head}_proj" in module:
                    weight = module[f"delta_{head}_proj"]
                    module[f"delta_{head}_proj"] = mx.zeros_like(weight)

    def run(self, head: str = "", part: int = 0, parts: int = 1) -> dict[str, np.ndarray]:
        """Keys, values, input of the output projection and logits, with ``part`` of ``parts``
        blocks of rows of a head's correction, and nothing else, switched on."""
        if head:
            weight = self.weights[head]
            chosen = mx.arange(weight.shape[0]) * parts // weight.shape[0] == part
            self.attention[f"delta_{head}_proj"] = mx.where(chosen[:, None], weight, 0)
        output, seen = self.attention[self.names[-1]], []
        kind = type(output)

        def spy(module: nn.Module, x: mx.array) -> mx.array:
            seen.append(np.array(x[0]))
            return kind.__call__(module, x)

        output.__class__ = type(kind.__name__, (kind,), {"__call__": spy})
        try:
            cache = make_prompt_cache(self.model)
            logits = logits_of(self.model, [TOKENS], cache)
        finally:
            output.__class__ = kind
            for h, weight in self.weights.items():
                self.attention[f"delta_{h}_proj"] = mx.zeros_like(weight)
        kept = list(kv_of(cache))
        if "k" in self.heads:
            keys, values = kept[0]
        else:  # it is the last layer: no cache holds anything of it
            keys, values = (np.array([pair[i].sum() for pair in kept]) for i in (0, 1))
        return {"keys": keys, "values": values, "attended": seen[0], "logits": logits}


def changed(a: np.ndarray, b: np.ndarray) -> bool:
    return not np.array_equal(a, b)


def direction(a: np.ndarray) -> np.ndarray:
    """Unit vectors: what is left where a norm over all heads rescales every one of them."""
    return a / np.linalg.norm(a, axis=-1, keepdims=True)


@pytest.mark.parametrize("name", slow_but(PATCHED, KINDS))
def test_each_head_is_corrected_in_its_own_place(name: str):
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    probe = Probe(name, attach_random(name, build(name)))
    assert all(p in probe.attention for p in probe.names)
    plain = probe.run()
    own = {"q": "", "k": "keys", "v": "values", "o": ""}
    for head in probe.heads:
        got = probe.run(head)
        assert changed(got["logits"], plain["logits"]), f"Δ{head} has no effect"
        for what in ("keys", "values"):
            assert changed(got[what], plain[what]) == (what == own[head]), f"Δ{head} and {what}"
        assert changed(got["attended"], plain["attended"]) == (head != "o"), f"Δ{head}"
    if "k" in probe.heads:
        rows_of_keys_and_values(probe, plain)


def rows_of_keys_and_values(probe: Probe, plain: dict[str, np.ndarray]) -> None:
    """Rows of Δk, Δv and Δq reach the head that they belong to, and no other."""
    kv_heads, _, width = plain["values"].shape
    last, heads = kv_heads - 1, plain["attended"].shape[-1] // width
    keys = probe.run("k", last, kv_heads)["keys"]
    values = probe.run("v", last, kv_heads)["values"]
    assert changed(keys[last], plain["keys"][last])
    assert changed(values[last], plain["values"][last])
    assert np.allclose(direction(keys[:last]), direction(plain["keys"][:last]), atol=1e-6)
    assert not changed(values[:last], plain["values"][:last])

    row = probe.run("v", last * width + 1, kv_heads * width)["values"]
    difference = np.abs(row - plain["values"]).max(axis=1)
    assert np.unravel_index(difference.argmax(), difference.shape) == (last, 1)

    if not changed(keys[:last], plain["keys"][:last]):  # no norm over all heads together
        by_head = (heads, width)
        attended = plain["attended"].reshape(-1, *by_head)
        for head in range(heads):
            got = probe.run("q", head, heads)["attended"].reshape(-1, *by_head)
            moved = (got != attended).any(axis=(0, 2))
            assert moved.tolist() == [i == head for i in range(heads)], f"Δq of head {head}"


def quantizable(_: str, module: nn.Module) -> bool:
    return hasattr(module, "to_quantized") and module.weight.shape[-1] % 32 == 0


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_base(name: str):
    model = build(name)
    nn.quantize(model, 32, 4, class_predicate=quantizable)
    assert any(isinstance(m, nn.QuantizedLinear) for m in model.layers[-1].modules())
    plain = logits_of(model, [TOKENS])
    attach_zero(name, model)
    assert np.array_equal(logits_of(model, [TOKENS]), plain)
    attach_random(name, dm.detach(model))
    whole = logits_of(model, [TOKENS], make_prompt_cache(model))
    assert np.abs(whole - plain).max() > 10 * TOLERANCE
    assert_close(feed(model, TOKENS, make_prompt_cache(model), 4), whole, "4 at a time")
    assert np.array_equal(logits_of(dm.detach(model), [TOKENS]), plain)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_sentence(name: str):
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    model = build(name)
    plain = logits_of(model, [TOKENS])
    before = shape_of(model)
    kinds = [type(m).__name__ for layer in model.layers for m in layer.modules()]
    with pytest.raises(ValueError, match="Cannot attach a memory to") as error:
        dm.attach(model, dm.DeltaMemConfig(rank=RANK), seed=0)
    sentence = str(error.value)
    if name == "iquestloopcoder":
        assert "layers 0 to 1 have their projections called past the attention" in sentence
    else:
        looked_for, _, found = sentence.partition("found ")
        assert all(p in looked_for for p in ("q_proj, k_proj, v_proj", "o_proj", "KV cache"))
        assert found == "no attention." or any(f"({kind})" in found for kind in kinds)
    assert shape_of(model) == before
    assert np.array_equal(logits_of(model, [TOKENS]), plain)


def test_keys_and_values_that_are_no_projections_are_refused_by_name():
    model = build("glm4_moe_lite")
    with pytest.raises(ValueError, match="layers 0 to 1 have no k and v projection of their own"):
        dm.attach(model, dm.DeltaMemConfig(rank=RANK), seed=0)
    with pytest.raises(ValueError, match="layers 1 have no v projection of their own"):
        config = dm.DeltaMemConfig(rank=RANK, delta_heads=("q", "v"), target_layers=(1,))
        dm.attach(model, config, seed=0)


def test_layers_that_can_get_a_memory_and_those_left_out_are_said_in_one_line():
    model = build("gemma4_text")
    with pytest.warns(UserWarning, match="A memory in layers 0 to 1: layers 2 to 3 have no k"):
        dm.attach(model, dm.DeltaMemConfig(rank=RANK), seed=0)
    assert list(dm.memory_state(make_prompt_cache(model))) == [0, 1]


def test_layers_can_be_named_where_others_share_keys():
    config = dm.DeltaMemConfig(rank=RANK, target_layers=(0, 2), delta_heads=("q", "o"))
    model = dm.attach(build("gemma4_text"), config, seed=0)
    assert list(dm.memory_state(make_prompt_cache(model))) == [0, 2]
    logits_of(model, [TOKENS], make_prompt_cache(model))
    with pytest.raises(ValueError, match="layers 3 use the keys and values of other"):
        beyond = dm.DeltaMemConfig(target_layers=(0, 3), delta_heads=("q", "o"))
        dm.attach(build("gemma4_text"), beyond, seed=0)
