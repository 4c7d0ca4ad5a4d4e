"""A memory comes whole or not at all, goes without a trace, and says what it changes."""

import copy
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from golden import GOLDEN
from mlx.utils import tree_flatten
from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers
from tiny import strong_pair, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.adapters.loading import fingerprint
from deltamem_mlx.model.attention import DeltaMemAttention
from deltamem_mlx.model.parameters import PARAMETERS

TOKENS = mx.array([[5, 9, 33, 80, 12, 7, 44, 8]])
LORA = {"rank": 2, "scale": 8.0, "dropout": 0.0}
PUBLISHED = GOLDEN / "tsw_qo_long" / "adapter"


def names(model: nn.Module) -> set[str]:
    """Of what is trainable."""
    return {name for name, _ in tree_flatten(model.trainable_parameters())}


def of_memory(names: set[str]) -> set[str]:
    return {name for name in names if name.rpartition(".")[2] in PARAMETERS}


def looks(model: nn.Module) -> object:
    """All that a memory changes in a model."""
    classes = [(name, type(module)) for name, module in model.named_modules()]
    return classes, [name for name, _ in tree_flatten(model.parameters())], names(model)


class Failure(BaseException):
    """Like a Ctrl-C at an unlucky moment."""


@pytest.mark.parametrize("at", range(3))
@pytest.mark.parametrize("step", ["add_memory", "pack"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_failure_at_any_layer_leaves_the_model_as_it_was(
    qwen3_tiny: Path, at: int, step: str, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = mlx_lm.load(str(qwen3_tiny))
    if frozen:
        model.layers[1].freeze()
    before, logits = looks(model), model(TOKENS)
    real, calls = getattr(DeltaMemAttention, step), [0]

    def failing(self: DeltaMemAttention, *args: object) -> None:
        real(self, *args)
        calls[0] += 1
        if calls[0] == at + 1:
            raise Failure

    monkeypatch.setattr(DeltaMemAttention, step, failing)
    for attach in (
        lambda: dm.attach(model, dm.DeltaMemConfig()),
        lambda: dm.load_adapter(model, PUBLISHED),
    ):
        calls[0] = 0
        with pytest.raises(Failure):
            attach()
        assert looks(model) == before and mx.array_equal(model(TOKENS), logits)
    monkeypatch.undo()
    dm.load_adapter(model, PUBLISHED)


@pytest.mark.parametrize("name", [5, [], {}, True, "x" * 9999])
def test_a_base_model_of_the_wrong_kind_leaves_the_model_as_it_was(
    qwen3_tiny: Path, tmp_path: Path, name: object
) -> None:
    model, _ = strong_pair(qwen3_tiny)
    dm.save_adapter(model, tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model": {"name": name}}))
    before = looks(dm.detach(model))
    with pytest.raises(ValueError, match=r"base_model: name: .*expected text"):
        dm.load_adapter(model, tmp_path)
    assert looks(model) == before


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_used_from_another_thread_at_once(training: bool) -> None:
    model = tiny_model()
    model.train(training)
    dm.attach(model, dm.DeltaMemConfig(delta_o_rmsnorm=True, trainable_delta_scale=True), seed=0)
    found: list[object] = []

    def use() -> None:
        try:
            found.append(np.array(model(TOKENS, cache=make_prompt_cache(model))))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    expected = np.array(model(TOKENS, cache=make_prompt_cache(model)))
    assert isinstance(found[0], np.ndarray), found[0]
    np.testing.assert_array_equal(found[0], expected)


def test_what_a_memory_over_a_lora_freezes_is_said_and_given_back() -> None:
    model = tiny_model()
    model.freeze()
    linear_to_lora_layers(model, 2, LORA)
    before = names(model)
    assert before and all(name.endswith(("lora_a", "lora_b")) for name in before)
    with pytest.warns(UserWarning, match="only the memory is trainable"):
        dm.attach(model, dm.DeltaMemConfig())
    assert names(model) == of_memory(names(model)) != set()
    assert names(dm.detach(model)) == before


def test_a_lora_put_over_a_memory_stays_when_the_memory_goes() -> None:
    model = tiny_model()
    model.freeze()
    dm.attach(model, dm.DeltaMemConfig())
    linear_to_lora_layers(model, 2, LORA)
    model.layers[0].self_attn.q_proj.lora_b = mx.ones_like(model.layers[0].self_attn.q_proj.lora_b)
    lora = names(model) - of_memory(names(model))
    assert lora and all(name.endswith(("lora_a", "lora_b")) for name in lora)
    weights = dict(tree_flatten(model.parameters()))
    assert names(dm.detach(model)) == lora
    plain = tiny_model()
    plain.freeze()
    linear_to_lora_layers(plain, 2, LORA)
    plain.load_weights([(name, weights[name]) for name in lora], strict=False)
    assert mx.array_equal(model(TOKENS), plain(TOKENS))


def test_weights_that_were_quantized_below_a_memory_stay_frozen() -> None:
    model = dm.attach(tiny_model(intermediate_size=64), dm.DeltaMemConfig())
    nn.quantize(model, group_size=32, bits=4)
    dm.detach(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.QuantizedLinear):
            assert not names(module), name
    assert any(name.endswith("norm.weight") for name in names(model))


def test_replaced_layers_are_not_kept_by_a_memory() -> None:
    """The dense weights of a model that was quantized are given free."""
    import gc
    from weakref import ref

    model = dm.attach(tiny_model(intermediate_size=64), dm.DeltaMemConfig())
    dense = ref(model.layers[0].self_attn.q_proj)
    nn.quantize(model, group_size=32, bits=4)
    gc.collect()
    assert dense() is None


def test_a_copy_of_a_model_with_a_memory_is_on_its_own() -> None:
    plain = tiny_model()
    before = names(plain)
    model = dm.attach(plain, dm.DeltaMemConfig(output_init="random"), seed=0)
    expected, first = model(TOKENS), fingerprint(model)
    other = copy.deepcopy(model)
    assert fingerprint(other) == first and mx.array_equal(other(TOKENS), expected)
    attention = other.layers[0].self_attn
    attention.memory_q_proj = attention.memory_q_proj * 2
    changed = fingerprint(other)
    assert changed != first and fingerprint(model) == first
    cache = make_prompt_cache(other)
    other(TOKENS, cache=cache)
    with pytest.raises(ValueError, match="made under another adapter"):
        model(TOKENS, cache=cache)
    memory = names(model)
    dm.detach(other)
    assert names(other) == before and names(model) == memory == of_memory(memory)
    assert cache[0].memory.fingerprint == changed
    assert mx.array_equal(model(TOKENS), expected)
    assert names(dm.detach(model)) == before


def test_a_fingerprint_is_never_that_of_weights_from_before() -> None:
    """Another thread asks while it is made anew."""
    model = dm.attach(tiny_model(), dm.DeltaMemConfig(), seed=0)
    mark, seen = make_prompt_cache(model)[0].memory.mark, []
    before, whole = mark.fingerprint, mark._whole
    attention = model.layers[0].self_attn
    attention.memory_q_proj = attention.memory_q_proj * 2

    def asked_meanwhile() -> dict[str, mx.array]:
        mark._whole = whole
        seen.append(mark.fingerprint)
        return whole()

    mark._whole = asked_meanwhile
    after = mark.fingerprint
    assert seen == [after] and after != before


@pytest.fixture
def adapter(qwen3_tiny: Path, tmp_path: Path) -> Path:
    dm.save_adapter(dm.load(str(qwen3_tiny), without_pytorch(tmp_path))[0], tmp_path / "adapter")
    return tmp_path / "adapter"


def without_pytorch(folder: Path) -> Path:
    shutil.copytree(PUBLISHED, folder / "source", ignore=shutil.ignore_patterns("*.pt"))
    return folder / "source"


def base_named(folder: Path, name: str | None, **shape: object) -> Path:
    file = folder / "adapter_config.json"
    values = json.loads(file.read_text())
    values["base_model"] |= {"name": name, **shape}
    file.write_text(json.dumps(values))
    return folder


@pytest.mark.parametrize(
    "other",
    [
        *("Qwen/Qwen3-8B", "/models/other-tiny", "somebody/qwen3-tiny-2", "x/qwen3-tiny-2507"),
        "/hub/models--Qwen--Qwen3-8B/snapshots/qwen3-tiny",
    ],
)
def test_another_base_of_the_same_shape_is_said_with_both_names(
    qwen3_tiny: Path, adapter: Path, other: str
) -> None:
    with pytest.warns(UserWarning, match=f"trained on {other}, and is used with {qwen3_tiny}"):
        dm.load(str(qwen3_tiny), base_named(adapter, other))


def test_another_type_of_base_is_said(qwen3_tiny: Path, adapter: Path) -> None:
    base_named(adapter, None, model_type="llama")
    model, _ = mlx_lm.load(str(qwen3_tiny))
    with pytest.warns(UserWarning, match="type llama, and is used with one of type qwen3"):
        dm.load_adapter(model, adapter)


@pytest.mark.parametrize(
    "same",
    [
        *(None, "Qwen/Qwen3-Tiny", "mlx-community/qwen3-tiny-4bit", "x/qwen3-tiny-MLX-8bit@main"),
        *("", "mlx-community/Qwen3-Tiny-4bit-DWQ-053125"),
        "/home/me/hub/models--Qwen--Qwen3-Tiny/snapshots/0123abcd",
    ],
)
@pytest.mark.filterwarnings("error::UserWarning")
def test_the_same_base_by_another_way_is_not(
    qwen3_tiny: Path, adapter: Path, same: str | None
) -> None:
    dm.load(str(qwen3_tiny), base_named(adapter, same))


# Prompt caches.


@pytest.fixture
def pair(qwen3_tiny: Path) -> nn.Module:
    return strong_pair(qwen3_tiny)[0]


def fed(model: nn.Module) -> list:
    cache = make_prompt_cache(model)
    model(TOKENS, cache=cache)
    return cache


def other_weights(model: nn.Module) -> None:
    attention = model.layers[2].self_attn
    attention.beta_bias = attention.beta_bias + 1e-6


def other_settings(model: nn.Module) -> None:
    """The same shapes and weights under another scale."""
    attentions = [layer.self_attn for layer in model.layers]
    weights = [{key: a[key] for key in a.adapter_keys()} for a in attentions]
    config = dm.DeltaMemConfig.from_dict(attentions[0].memory_config.to_dict() | {"alpha": 3.0})
    dm.attach(dm.detach(model), config)
    for attention, values in zip(attentions, weights, strict=True):
        attention.update(values)


@pytest.mark.parametrize(
    ("change", "on_disk"), [(other_weights, True), (other_settings, True), (other_settings, False)]
)
def test_a_prompt_cache_is_refused_under_another_adapter(
    pair: nn.Module, tmp_path: Path, change: Callable[[nn.Module], None], on_disk: bool
) -> None:
    cache = fed(pair)
    if on_disk:
        save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
        cache = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    wrote = fingerprint(pair)
    change(pair)
    with pytest.raises(ValueError, match="under another adapter") as error:
        pair(TOKENS, cache=cache)
    assert wrote[:12] in str(error.value) and fingerprint(pair)[:12] in str(error.value)


def test_a_prompt_cache_goes_on_under_its_own_adapter(
    pair: nn.Module, qwen3_tiny: Path, tmp_path: Path
) -> None:
    cache = fed(pair)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    dm.save_adapter(pair, tmp_path / "adapter")
    expected = pair(TOKENS, cache=cache)
    again, _ = dm.load(str(qwen3_tiny), tmp_path / "adapter")
    found = again(TOKENS, cache=load_prompt_cache(str(tmp_path / "cache.safetensors")))
    assert mx.array_equal(found, expected)
    dm.load_adapter(dm.detach(pair), tmp_path / "adapter")
    pair(TOKENS, cache=cache)  # from before it was detached, and attached again


def test_a_prompt_cache_is_refused_by_the_plain_model(pair: nn.Module, tmp_path: Path) -> None:
    cache = fed(pair)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), cache)
    plain = dm.detach(pair)
    for kept in (cache, load_prompt_cache(str(tmp_path / "cache.safetensors"))):
        with pytest.raises(ValueError, match="the model that uses it has none"):
            plain(TOKENS, cache=kept)


def test_memories_in_a_batch_keep_their_adapters_name(pair: nn.Module, tmp_path: Path) -> None:
    batch = [one.merge([one, two]) for one, two in zip(fed(pair), fed(pair), strict=True)]
    save_prompt_cache(str(tmp_path / "cache.safetensors"), [c.extract(1) for c in batch])
    cache = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    other_weights(pair)
    with pytest.raises(ValueError, match="under another adapter"):
        pair(TOKENS, cache=cache)


def test_memories_of_other_adapters_are_refused_in_a_batch(pair: nn.Module, tmp_path: Path) -> None:
    save_prompt_cache(str(tmp_path / "cache.safetensors"), fed(pair))
    kept = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    for one, two in zip(kept, fed(pair), strict=True):
        for both in ([one, two], [two, one]):
            assert one.merge(both).memory.mark is two.memory.mark
    other = copy.deepcopy(pair)
    other_weights(other)
    for one, two in zip(kept, fed(other), strict=True):
        for both in ([one, two], [two, one]):
            with pytest.raises(ValueError, match="Cannot merge memories of different adapters"):
                one.merge(both)


def test_a_seed_leaves_other_random_numbers_as_they_are() -> None:
    config = dm.DeltaMemConfig(output_init="random")
    mx.random.seed(5)
    expected = mx.random.uniform(shape=(4,))
    one, same, other = tiny_model(), tiny_model(), tiny_model()
    mx.random.seed(5)
    one, same = (dm.attach(model, config, seed=1) for model in (one, same))
    assert fingerprint(one) == fingerprint(same)
    two = dm.attach(other, config, seed=2)
    assert mx.array_equal(mx.random.uniform(shape=(4,)), expected)
    assert fingerprint(two) != fingerprint(one)


@pytest.mark.parametrize("seed", [-1, 1 << 64, "1", True, 1.5])
def test_a_seed_is_a_whole_number(seed: object) -> None:
    model = tiny_model()
    with pytest.raises((TypeError, ValueError), match=r"^seed is .*, expected a [^\n]*$"):
        dm.attach(model, dm.DeltaMemConfig(), seed=seed)
    dm.attach(model, dm.DeltaMemConfig(), seed=(1 << 64) - 1)
