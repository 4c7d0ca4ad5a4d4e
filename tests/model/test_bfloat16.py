"""A memory in a bfloat16 model adds no rounding to speak of: its own numbers stay float32."""

import math
from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import pytest
from architectures import ARCHITECTURES, build, missing, slow_but
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.utils import load_model
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.bench import STRATEGIES
from deltamem_mlx.bench.models import twin

pytestmark = pytest.mark.fused

HISTORY, PROMPT, MESSAGE = 32, 96, 16  # tokens: the first call, the first two, and a message
ALLOWED = 1.5


def in_dtype(model: nn.Module, dtype: mx.Dtype) -> nn.Module:
    copy = twin(model)
    copy.set_dtype(dtype)
    return copy


def with_adapter(
    model: nn.Module, strategy: str, heads: tuple[str, ...] = ("q", "k", "v", "o")
) -> nn.Module:
    """A twin whose memory corrects projections, by the same float32 weights each time."""
    acting = {"output_init": "random", "online_gain": 0.5, "delta_heads": heads}
    config = dm.DeltaMemConfig(**acting | STRATEGIES[strategy])
    return dm.attach(twin(model), config, seed=1).eval()


def logits(model: nn.Module, tokens: mx.array, by_message: bool = False) -> mx.array:
    """Float32 logits of a prompt after a history, and of tokens decoded one by one."""
    cache = make_prompt_cache(model)
    ids = [[t // MESSAGE for t in range(HISTORY)]] * len(tokens)
    with dm.write_spans(cache, ids) if by_message else nullcontext():
        model(tokens[:, :HISTORY], cache=cache)
    found = [model(tokens[:, HISTORY:PROMPT], cache=cache)]
    for t in range(PROMPT, tokens.shape[1]):
        found.append(model(tokens[:, t : t + 1], cache=cache))
    # One architecture says -inf to ids that its tokenizer lacks.
    return mx.maximum(mx.concatenate(found, axis=1).astype(mx.float32), -1e4)


def rms(x: mx.array) -> float:
    return mx.sqrt(mx.square(x).mean()).item()


def rounding(
    model: nn.Module, strategy: str, tokens: mx.array, **heads: tuple[str, ...]
) -> tuple[float, float]:
    """How far bfloat16 logits are from float32, with a memory over without; and what it moves."""
    plain = [in_dtype(model, dtype) for dtype in (mx.float32, mx.bfloat16)]
    patched = [with_adapter(m, strategy, **heads) for m in plain]
    exact, half = (logits(m, tokens) for m in plain)
    moved_exact, moved_half = (logits(m, tokens, strategy == "SSW") for m in patched)
    base = rms(half - exact)
    return rms(moved_half - moved_exact) / base, rms(moved_exact - exact) / base


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_memory_rounds_no_more_than_the_model(
    strategy: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAMEM_SCAN", form)
    tokens = mx.random.randint(0, 96, (2, PROMPT + 6), key=mx.random.key(0))
    ratio, moved = rounding(tiny_model(), strategy, tokens)
    assert moved > 2  # or a memory that does nothing would pass
    assert ratio <= ALLOWED


# Every architecture. A router that takes some of the experts, and an indexer that takes some of the
# tokens, make another choice of a rounding now and then, which says nothing of the memory: all are
# taken. On a CPU, MLX multiplies by chosen experts in bfloat16 only where these are quantized.
WHOLE = dict.fromkeys(
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_top_k"), 4
) | dict(moe_k=4, index_topk=256, index_topk_blocks=64)
SIDES = dict.fromkeys(
    ("moe_intermediate_size", "shared_intermediate_size", "shared_expert_intermediate_size"), 32
) | dict(expert_ffn_hidden_size=32, moe_shared_expert_intermediate_size=32, share_expert_dim=32)
SIDES |= dict(intermediate_size=64, intermediate_size_mlp=64, dense_intermediate_size=64)
MORE: dict[str, dict[str, object]] = {
    "dbrx": dict(ffn_config=dict(ffn_hidden_size=64, moe_num_experts=4, moe_top_k=4)),
    "llama4": dict(num_experts_per_tok=1, num_local_experts=1),
    "llama4_text": dict(num_experts_per_tok=1, num_local_experts=1),
    "longcat_flash": dict(moe_topk=6),
    "longcat_flash_ngram": dict(moe_topk=6),
}
QUICK = ("glm4_moe_lite", "hunyuan", "longcat_flash", "youtu_llm")
PATCHED = [name for name, a in ARCHITECTURES.items() if not a.refused]


def whole_model(name: str, seed: int) -> nn.Module:
    model = build(name, seed, **WHOLE | SIDES | MORE.get(name, {}))
    nn.quantize(model, 32, 8, class_predicate=lambda _, m: isinstance(m, SwitchLinear))
    return model


@pytest.mark.parametrize("name", slow_but(PATCHED, QUICK))
def test_a_memory_rounds_no_more_than_any_architecture(name: str) -> None:
    if lacking := missing(name):
        pytest.skip(f"needs {lacking}")
    ratios = []
    for seed in range(3):
        tokens = mx.random.randint(0, 96, (1, PROMPT + 6), key=mx.random.key(seed))
        heads = tuple(ARCHITECTURES[name].heads)
        ratio, moved = rounding(whole_model(name, seed), "TSW", tokens, heads=heads)
        assert moved > 1
        ratios.append(ratio)
    # One random model rounds a little more, another less: what counts is what they do together.
    assert math.prod(ratios) ** (1 / len(ratios)) <= ALLOWED, ratios


@pytest.mark.real_model
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_memory_rounds_no_more_than_a_real_model(strategy: str, smollm2: Path) -> None:
    tokens = mx.random.randint(0, 40_000, (1, PROMPT + 2), key=mx.random.key(0))
    ratio, moved = rounding(load_model(smollm2)[0], strategy, tokens)
    print(f"{strategy}: {ratio:.3f} times the rounding, corrections of {moved:.1f} times")
    assert moved > 0.5
    assert ratio <= ALLOWED
