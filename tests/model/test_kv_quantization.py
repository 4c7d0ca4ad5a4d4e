"""KV quantization beside a memory, in every kind of attention whose cache mlx-lm can quantize."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import ARCHITECTURES, build
from mlx_lm.generate import generate_step, maybe_quantize_kv_cache
from mlx_lm.models.cache import (
    QuantizedKVCache,
    load_prompt_cache,
    make_prompt_cache,
    save_prompt_cache,
)

import deltamem_mlx as dm

TOKENS = np.random.default_rng(1).integers(1, 90, 21).tolist()
BITS, GROUP = 8, 32
SIDES = ("head_dim", "kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
WIDE = dict.fromkeys(SIDES, GROUP) | dict(hidden_size=128)
FULL = dict(layer_types=["full_attention"] * 6, num_hidden_layers=6)  # mlx-lm: no sliding ones
KINDS = {
    "deepseek_v2": {},  # latent
    "gemma4 (31B)": FULL,  # keys that are values
    "hunyuan": {},  # every second layer has the keys of the one before
    "llama4": {},  # chunks in some layers
    "phi3": {},  # packed
    "qwen3": {},
    "qwen3_next": {},  # attention in some layers
    "youtu_llm": {},  # latent
}
# What mlx-lm itself fails at: latent keys that its attention takes apart, and sliding windows.
IMPOSSIBLE = {"deepseek_v3": AttributeError, "gemma4 (E2B)": NotImplementedError}


def wide(name: str) -> nn.Module:
    return build(name, **WIDE | KINDS.get(name, {}))


def with_memory(name: str, model: nn.Module, output_init: str) -> nn.Module:
    heads = tuple(ARCHITECTURES[name].heads)
    config = dm.DeltaMemConfig(
        rank=4, output_init=output_init, online_gain=0.5, beta_bias_init=0.0, delta_heads=heads
    )
    return dm.attach(model, config, seed=1)


def run(
    model: nn.Module, bits: int, start: int = 0, cache: list | None = None
) -> tuple[np.ndarray, list]:
    """Logits of TOKENS from ``start`` on in pieces, the cache quantized after the first."""
    cache, found = make_prompt_cache(model) if cache is None else cache, []
    for piece in (TOKENS[:10], TOKENS[10:16], *[[token] for token in TOKENS[16:]])[start:]:
        found.append(np.array(model(mx.array([piece]), cache=cache)[0]))
        if bits:
            maybe_quantize_kv_cache(cache, 0, GROUP, bits)
    return np.concatenate(found), cache


def decoded(model: nn.Module) -> list[int]:
    prompt, settings = mx.array(TOKENS), dict(kv_bits=BITS, kv_group_size=GROUP)
    return [token for token, _ in generate_step(prompt, model, max_tokens=6, **settings)]


def states(cache: list) -> np.ndarray:
    return np.stack([np.array(state) for state in dm.memory_state(cache).values()])


@pytest.mark.parametrize("name", KINDS)
def test_a_quantized_kv_cache_with_a_memory(name: str, tmp_path: Path) -> None:
    model = wide(name)
    exact, plain = run(model, 0)[0], run(model, BITS)[0]
    said = decoded(model)
    with_memory(name, model, "zero")
    assert np.array_equal(run(model, BITS)[0], plain)
    assert decoded(model) == said

    with_memory(name, dm.detach(model), "random")
    whole, kept = run(model, 0)
    logits, cache = run(model, BITS)
    assert any(isinstance(getattr(entry, "kv", None), QuantizedKVCache) for entry in cache)
    lost = np.abs(plain - exact).max()
    assert 0 < np.abs(logits - whole).max() <= 4 * lost
    assert np.abs(states(cache) - states(kept)).max() <= 4 * lost

    half = make_prompt_cache(model)
    model(mx.array([TOKENS[:10]]), cache=half)
    maybe_quantize_kv_cache(half, 0, GROUP, BITS)
    save_prompt_cache(str(tmp_path / "cache.safetensors"), half)
    loaded = load_prompt_cache(str(tmp_path / "cache.safetensors"))
    rest, end = run(model, BITS, 1, loaded)
    assert np.array_equal(rest, logits[10:])
    assert np.array_equal(states(end), states(cache))


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_mlx_lm_cannot_quantize_fails_as_it_does_without_a_memory(name: str) -> None:
    for model in (wide(name), with_memory(name, wide(name), "zero")):
        with pytest.raises(IMPOSSIBLE[name]):
            run(model, BITS)
