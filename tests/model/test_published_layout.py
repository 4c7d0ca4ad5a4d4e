"""The published adapter's exact layout on a model of its shape: Qwen3-4B, 4-bit, random weights."""

import json
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

import deltamem_mlx as dm
from deltamem_mlx.config import REMOVED_SWITCHES

LAYERS, DIMS, HEADS, KV_HEADS, HEAD_DIM, MLP, VOCAB = 36, 2560, 32, 8, 128, 9728, 151936
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": DIMS,
    "num_hidden_layers": LAYERS,
    "intermediate_size": MLP,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCAB,
    "rope_theta": 5000000,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
    "quantization": {"group_size": 64, "bits": 4},
}
LINEARS = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, DIMS),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, DIMS),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, DIMS),
    "self_attn.o_proj": (DIMS, HEADS * HEAD_DIM),
    "mlp.gate_proj": (MLP, DIMS),
    "mlp.up_proj": (MLP, DIMS),
    "mlp.down_proj": (DIMS, MLP),
}
NORMS = {
    "input_layernorm": DIMS,
    "post_attention_layernorm": DIMS,
    "self_attn.q_norm": HEAD_DIM,
    "self_attn.k_norm": HEAD_DIM,
}


def quantized(name: str, rows: int, columns: int) -> Iterator[tuple[str, mx.array]]:
    """A random 4-bit weight, made as it is stored."""
    yield f"{name}.weight", mx.random.randint(0, 2**31, (rows, columns // 8)).astype(mx.uint32)
    yield f"{name}.scales", mx.full((rows, columns // 64), 0.004, dtype=mx.bfloat16)
    yield f"{name}.biases", mx.full((rows, columns // 64), -0.03, dtype=mx.bfloat16)


def write_model(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(0)
    top = dict(quantized("model.embed_tokens", VOCAB, DIMS))
    top["model.norm.weight"] = mx.ones((DIMS,), dtype=mx.bfloat16)
    mx.save_safetensors(str(folder / "model-top.safetensors"), top)
    for i in range(LAYERS):
        layer = {}
        for name, shape in LINEARS.items():
            layer.update(quantized(f"model.layers.{i}.{name}", *shape))
        for name, width in NORMS.items():
            layer[f"model.layers.{i}.{name}.weight"] = mx.ones((width,), dtype=mx.bfloat16)
        mx.save_safetensors(str(folder / f"model-{i:02}.safetensors"), layer)


def write_adapter(folder: Path) -> int:
    """The published key set and shapes, with a config that names every removed switch."""
    acting = dm.DeltaMemConfig(delta_heads=("q", "o"), target_layers=()).to_dict()
    config = acting | REMOVED_SWITCHES
    folder.mkdir()
    (folder / "delta_mem_config.json").write_text(json.dumps(config))
    shapes = {
        **{f"memory_{name}_proj": (8, DIMS) for name in "qkv"},
        "delta_q_proj": (HEADS * HEAD_DIM, 8),
        "delta_o_proj": (DIMS, 8),
        "beta_proj": (8, DIMS),
        "beta_bias": (8,),
    }
    random = np.random.default_rng(0)
    arrays = {
        f"model.layers.{i}.self_attn.{name}": random.normal(0, 0.02, shape).astype(np.float32)
        for i in range(LAYERS)
        for name, shape in shapes.items()
    }
    np.savez(folder / "delta_mem_adapter_mlx.npz", **arrays)
    return sum(array.size for array in arrays.values())


@pytest.mark.slow
def test_the_published_layout_loads_and_decodes(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert write_adapter(tmp_path / "adapter") == 4_866_336
    model, _ = load_model(tmp_path, lazy=True)
    dm.load_adapter(model, tmp_path / "adapter")

    trainable = tree_flatten(model.trainable_parameters())
    assert sum(array.size for _, array in trainable) == 4_866_336
    cache = make_prompt_cache(model)
    steps = generate_step(mx.array([9707, 11, 1879, 0]), model, prompt_cache=cache, max_tokens=3)
    logprobs = [logprobs for _, logprobs in steps]
    assert len(logprobs) == 3 and all(mx.isfinite(x).all() for x in logprobs)
    states = dm.memory_state(cache)
    assert list(states) == list(range(LAYERS))
    assert all(state.shape == (1, 1, 8, 8) and state.any() for state in states.values())
    dm.save_memory(tmp_path / "memory.safetensors", cache, model)
    assert (tmp_path / "memory.safetensors").stat().st_size < 13_000
