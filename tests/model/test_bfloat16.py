"""A memory in a bfloat16 model adds no rounding to speak of: its own numbers stay float32."""

from contextlib import nullcontext
from pathlib import Path

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.bench import STRATEGIES
from deltamem_mlx.bench.models import twin

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
    return mx.concatenate(found, axis=1).astype(mx.float32)


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


@pytest.mark.parametrize(
    "name", ["gemma3n", "gemma4 (E2B)", "gemma4 (31B)", "minicpm3", "youtu_llm"]
)
def test_a_memory_rounds_no_more_than_a_model_whose_keys_are_no_projections(name: str) -> None:
    tokens = mx.random.randint(0, 96, (1, PROMPT + 6), key=mx.random.key(0))
    ratio, moved = rounding(tiny_model(name), "TSW", tokens, heads=("q", "o"))
    assert moved > 1
    assert ratio <= ALLOWED


@pytest.mark.real_model
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_memory_rounds_no_more_than_a_real_model(strategy: str, smollm2: Path) -> None:
    tokens = mx.random.randint(0, 40_000, (1, PROMPT + 2), key=mx.random.key(0))
    ratio, moved = rounding(load_model(smollm2)[0], strategy, tokens)
    print(f"{strategy}: {ratio:.3f} times the rounding, corrections of {moved:.1f} times")
    assert moved > 0.5
    assert ratio <= ALLOWED
