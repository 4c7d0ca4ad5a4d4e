"""Deep models: as many layers as released ones have, and what they make of rounding."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from architectures import ARCHITECTURES, RELEASED_DEPTH, build, layers_of
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx.model.patch import memory_layers

TOKENS = np.random.default_rng(1).integers(1, 90, 21).tolist()
OURS = 1e-6  # of a change that every number of the embeddings gets: eight times float32's rounding


def with_memory(model: nn.Module, output_init: str) -> nn.Module:
    config = dm.DeltaMemConfig(
        rank=4,
        output_init=output_init,
        online_gain=0.5,
        beta_bias_init=0.0,
        delta_heads=("q", "o"),
    )
    return dm.attach(model, config, seed=1)


def fed(model: nn.Module, step: int, cache: list | None = None) -> np.ndarray:
    """Logits [T, V] of TOKENS, ``step`` at a time."""
    cache = make_prompt_cache(model) if cache is None else cache
    pieces = [TOKENS[i : i + step] for i in range(0, len(TOKENS), step)]
    logits = [np.array(model(mx.array([piece]), cache=cache)[0]) for piece in pieces]
    return np.concatenate(logits)


def states(cache: list) -> np.ndarray:
    return np.stack([np.array(state) for state in dm.memory_state(cache).values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", RELEASED_DEPTH)
def test_a_memory_in_every_layer_of_a_model_as_deep_as_the_released_one(name: str) -> None:
    row, depth = RELEASED_DEPTH[name]
    model = build(row, **depth)
    plain, parameters = fed(model, 21), [k for k, _ in tree_flatten(model.parameters())]
    model = with_memory(model, "zero")
    assert list(memory_layers(model)) == list(range(len(model.layers)))
    assert np.array_equal(fed(model, 21), plain)
    assert np.array_equal(fed(dm.detach(model), 21), plain)
    assert [k for k, _ in tree_flatten(model.parameters())] == parameters

    model = with_memory(model, "random")
    whole_cache = make_prompt_cache(model)
    whole = fed(model, 21, whole_cache)
    assert np.abs(whole - plain).max() > 0.1
    for step in (1, 7):
        cache = make_prompt_cache(model)
        assert np.abs(fed(model, step, cache) - whole).max() <= 1e-4
        assert np.abs(states(cache) - states(whole_cache)).max() <= 1e-4

    def loss(weights: dict) -> mx.array:
        model.update(weights)
        return nn.losses.cross_entropy(
            model(mx.array([TOKENS]))[0, :-1], mx.array(TOKENS[1:])
        ).mean()

    for key, gradient in tree_flatten(mx.grad(loss)(model.trainable_parameters())):
        assert 0 < mx.abs(gradient).max() < 1e3, key


# Random layers one after the other make much of a small change; whoever measures how much a
# feeding changes the logits of such a model measures that.


def amplification(model: nn.Module) -> float:
    """How far logits move, over how far every number of the embeddings was moved (1e-5 of it)."""
    embedding = next(m for name, m in model.named_modules() if name.endswith("embed_tokens"))
    weight, plain = embedding.weight, fed(model, 21)
    moved = []
    for seed in range(4):
        noise = mx.random.normal(weight.shape, key=mx.random.key(seed))
        embedding.weight = weight * (1 + 1e-5 * noise)
        moved.append(np.abs(fed(model, 21) - plain).max() / 1e-5)
    embedding.weight = weight
    return float(np.mean(moved))


def deviation(model: nn.Module) -> float:
    """How far the logits of tokens fed in pieces are from those of one call."""
    whole = fed(model, 21)
    return max(np.abs(fed(model, step) - whole).max() for step in (1, 7))


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 2))])
@pytest.mark.parametrize(
    ("name", "period", "shared"), [("gemma4 (E2B)", 5, 5), ("gemma4 (31B)", 6, 0)]
)
def test_a_memory_rounds_no_more_in_a_deep_random_model_than_the_model_does(
    name: str, period: int, shared: int, seed: int
) -> None:
    layers = ARCHITECTURES[name].config["layer_types"][:period]
    model = build(name, seed, calm=False, **layers_of(layers, 3 * period, shared))
    for memory in (False, True):
        model = with_memory(model, "random") if memory else model
        assert deviation(model) <= OURS * amplification(model)
