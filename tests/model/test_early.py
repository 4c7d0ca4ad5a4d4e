"""Computing that begins before a call's graph is whole."""

from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.model import early
from deltamem_mlx.model.patch import memory_layers


@pytest.fixture
def model() -> nn.Module:
    return dm.attach(tiny_model(), dm.DeltaMemConfig(output_init="random"), seed=1)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of what a call began to compute."""
    shapes: list[tuple[int, ...]] = []
    monkeypatch.setattr(early, "_has_a_core", lambda device: True)
    monkeypatch.setattr(early.mx, "async_eval", lambda x: shapes.append(x.shape))
    return shapes


def test_a_call_of_several_tokens_begins_with_every_layer(model: nn.Module, begun: list) -> None:
    cache = make_prompt_cache(model)
    for tokens, times in ((5, 1), (1, 0), (2, 1), (40, 1)):
        model(mx.ones((1, tokens), mx.int32), cache=cache)
        assert len(begun) == times * len(memory_layers(model)), tokens
        begun.clear()
    model(mx.ones((1, 5), mx.int32))  # without a cache: as training and evaluating do
    with early.whole_graphs():
        model(mx.ones((1, 5), mx.int32), cache=cache)
    assert not begun


@pytest.mark.parametrize(("threads", "free"), [(4, False), (3, True), (None, True)])
def test_a_core_is_left_unless_openblas_has_all(
    threads: int | None, free: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {} if threads is None else {"openblas_get_num_threads": lambda: threads}
    monkeypatch.setattr(early.ctypes, "CDLL", lambda name: SimpleNamespace(**there))
    monkeypatch.setattr(early.os, "cpu_count", lambda: 4)
    ask = early._has_a_core.__wrapped__
    assert ask(mx.DeviceType.cpu) is free
    assert ask(mx.DeviceType.gpu) is True


@pytest.mark.parametrize("tokens", [1, 2, 5, 40])
def test_what_a_compiled_call_gives_is_the_same(model: nn.Module, tokens: int) -> None:
    def call(x: mx.array) -> list[mx.array]:
        cache = make_prompt_cache(model)
        return [model(x, cache=cache), *dm.memory_state(cache).values()]

    x = mx.arange(3, 3 + 2 * tokens).reshape(2, tokens)
    with early.whole_graphs():
        wanted = call(x)
    for found in (call(x), mx.compile(call)(x)):
        for a, b in zip(found, wanted, strict=True):
            assert mx.allclose(a, b, atol=1e-5)


def test_gradients_through_a_prompt_cache_are_the_same(model: nn.Module) -> None:
    def loss() -> mx.array:
        return model(mx.arange(3, 12)[None], cache=make_prompt_cache(model)).square().mean()

    with early.whole_graphs():
        wanted = nn.value_and_grad(model, loss)()
    found = nn.value_and_grad(model, loss)()
    mx.eval(found, wanted)
    assert mx.allclose(found[0], wanted[0])
    pairs = zip(tree_flatten(found[1]), tree_flatten(wanted[1]), strict=True)
    assert all(name == same and mx.allclose(a, b) for (name, a), (same, b) in pairs)
