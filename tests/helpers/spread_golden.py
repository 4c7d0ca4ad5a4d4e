"""The authors' numbers, beside those of a model that lies in several processes."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from golden import FIXTURES, GOLDEN, read_case, real_tokens, replay
from mlx_lm.models import llama
from mlx_lm.utils import load_model

import deltamem_mlx as dm

# mlx-lm has no pipeline for Qwen3. Qwen3-MoE without experts is the same model, and has one.
WITHOUT_EXPERTS = {
    "model_type": "qwen3_moe",
    "num_experts": 0,
    "num_experts_per_tok": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 0,
    "norm_topk_prob": True,
}


def part_of(name: str, way: str, group: mx.distributed.Group) -> nn.Module:
    """What this process has of a golden model."""
    if way == "pipeline":
        model = load_model(FIXTURES / name, model_config=WITHOUT_EXPERTS)[0]
        model.model.pipeline(group)
        return model
    model = load_model(FIXTURES / name)[0]
    llama.Model.shard(model, group)  # SmolLM3 has none of its own
    return model


def replayed(name: str, way: str, folder: Path, group: mx.distributed.Group) -> dict:
    """How far logits and states are from the recorded ones, at most."""
    case, expected = read_case(name)
    model = part_of(case["model"], way, group)
    dm.load_adapter(model, GOLDEN / name / "adapter")
    logits, states = [], []
    for step, given, cache in replay(name, model):
        difference = np.abs(np.array(given) - expected[f"{step['name']}.logits"])
        logits.append(float((difference * real_tokens(step, difference)).max()))
        memory = dm.memory_state(cache)
        recorded = [key for key in expected if key.startswith(f"{step['name']}.layer")]
        assert len(memory) == sum(key.endswith(".state") for key in recorded)
        for layer, state in memory.items():
            wanted = expected[f"{step['name']}.layer{layer}.state"].reshape(state.shape)
            states.append(float(np.abs(np.array(state) - wanted).max()))
    return {"steps": len(logits), "logits": max(logits), "states": max(states)}
