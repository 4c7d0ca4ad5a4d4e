"""How much graph a memory adds to one decoded token: bounds that keep it from creeping up."""

import io
from collections import Counter
from types import SimpleNamespace

import mlx.core as mx
import pytest
from mlx import nn
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx import ops
from deltamem_mlx.bench.models import twin
from deltamem_mlx.bench.primitives import VIEWS, added_per_layer, cached_arrays, count_primitives
from deltamem_mlx.ops import metal
from deltamem_mlx.ops.seams import metal_kernel

pytestmark = pytest.mark.fused

QO = {"delta_heads": ("q", "o")}


def added(
    config: dict[str, object],
    dtype: mx.Dtype = mx.float32,
    batch_size: int = 1,
    arch: str = "qwen3",
) -> dict[str, float]:
    plain = tiny_model(arch)
    plain.set_dtype(dtype)
    return added_per_layer(plain, attached(plain, config), batch_size)


def attached(plain: nn.Module, config: dict[str, object]) -> nn.Module:
    patched = dm.attach(twin(plain), dm.DeltaMemConfig(**QO | config), seed=0)
    patched.eval()
    return patched


@pytest.fixture(scope="module", autouse=True)
def _fuses() -> None:
    x = mx.zeros(1)
    mx.eval(x)
    graph = io.StringIO()
    mx.export_to_dot(graph, mx.compile(lambda x: mx.exp(x) + 1)(x))
    if "Compiled" not in graph.getvalue():
        pytest.skip("MLX cannot compile here: no C++ compiler")


@pytest.mark.parametrize("arch", ["qwen3", "llama"])
@pytest.mark.parametrize(
    "config",
    [
        {},
        {"num_state_heads": 4},
        {"memory_write_granularity": "message_mean"},
        {"couple_lambda": False},
        {"rankwise_gates": False},
        {"state_update_mode": "lambda_outside"},
        {"trainable_delta_scale": True},
    ],
    ids=["tsw", "msw", "ssw", "uncoupled", "scalar-gates", "lambda-outside", "trained-scale"],
)
def test_a_patched_layer_adds_at_most_12_primitives(config: dict[str, object], arch: str) -> None:
    assert added(config, arch=arch)["primitives"] <= 12


@pytest.mark.parametrize(
    ("config", "dtype", "batch_size", "primitives", "kernels"),
    [
        ({}, mx.float32, 1, 12, 10),
        # In a batch, a product with one weight has views around it: no kernels, but five of them
        # are reshapes, which are counted as they would copy what does not lie in a row.
        ({}, mx.float32, 8, 18, 15),
        # So many values of tanh are a fraction, which is two more kernels.
        ({"num_state_heads": 4}, mx.float32, 8, 20, 17),
        # The hidden state to float32, and the reads back.
        ({}, mx.bfloat16, 1, 14, 12),
        # One product for each further correction.
        ({"delta_heads": ("q", "k", "v", "o")}, mx.float32, 1, 14, 12),
    ],
    ids=["float32", "batch-8", "batch-8-msw", "bfloat16", "qkvo"],
)
def test_bounds(
    config: dict[str, object], dtype: mx.Dtype, batch_size: int, primitives: int, kernels: int
) -> None:
    found = added(config, dtype, batch_size)
    assert found["primitives"] <= primitives
    assert found["kernels"] <= kernels


@pytest.mark.parametrize(
    ("heads", "tokens", "primitives", "kernels"),
    [
        *((1, 2, 27, 18), (1, 8, 44, 25), (1, 32, 48, 29), (1, 64, 70, 43)),
        # More values of tanh, which is a fraction then, and smaller blocks.
        *((4, 2, 27, 18), (4, 8, 48, 29), (4, 32, 70, 43), (4, 64, 74, 47)),
    ],
)
def test_a_call_of_few_tokens_is_as_few_whatever_their_number(
    heads: int, tokens: int, primitives: int, kernels: int
) -> None:
    plain = tiny_model("llama")
    patched = attached(plain, {"num_state_heads": heads})
    found = added_per_layer(plain, patched, tokens=tokens)
    assert found["primitives"] <= primitives
    assert found["kernels"] <= kernels


@pytest.mark.parametrize("config", [{}, {"num_state_heads": 4}], ids=["tsw", "msw"])
def test_a_conversation_that_only_reads_adds_little_to_a_batch(config: dict[str, object]) -> None:
    model = attached(tiny_model("llama"), config)
    found = []
    for read_only in (False, True):
        cache = make_prompt_cache(model)
        model(mx.zeros((2, 3), mx.int32), cache=cache)
        for entry in cache:
            entry.memory.read_only = [False, read_only]
        found.append(count_primitives(model, cache).total() / 2)
    assert found[1] - found[0] <= 2


@pytest.fixture
def metal_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metal form, for graphs that are exported and never run.

    Left out is what has the gradient: it launches nothing, and MLX cannot export it.
    """
    inputs = (metal.SCAN_INPUTS, metal.SCAN_SOURCE), (metal.SHORT_INPUTS, metal.SHORT_SOURCE)
    kernels = [metal_kernel(f"k{i}", names, ["y", "s"], x) for i, (names, x) in enumerate(inputs)]
    monkeypatch.setattr(metal, "_kernels", lambda: kernels)
    monkeypatch.setattr(metal, "_differentiable", lambda run, _: lambda *x: tuple(run(*x)))
    for name in ("metal_step", "metal_short"):  # which may hold others
        monkeypatch.setattr(ops, name, getattr(metal, name).__wrapped__)
    monkeypatch.setattr(ops, "why_not_metal", lambda: None)


def exported(model: nn.Module, batch_size: int, tokens: int) -> Counter[str]:
    """The primitives of a first call, all of the cache's arrays included."""
    count: Counter[str] = Counter()
    cache = make_prompt_cache(model)
    for entry in cache if "memory_q_proj" in model.layers[0].self_attn else ():
        entry.memory.fit_batch(batch_size)
        entry.memory.matrix = mx.zeros((batch_size, 1, 8, 8))
        mx.eval(entry.memory.matrix)

    def call(tokens: mx.array) -> list[mx.array]:
        return [model(tokens, cache=cache), *cached_arrays(cache)]

    def note(event: dict) -> None:
        count.update([event["name"]] if event["type"] == "primitive" else [])

    mx.export_function(note, call, mx.zeros((batch_size, tokens), mx.int32))
    return count


@pytest.mark.parametrize("tokens", [1, 8, 64])
@pytest.mark.parametrize(
    ("dtype", "batch_size", "launches"),
    [
        # The projection, the kernel, and a product each for q and o.
        (mx.float32, 1, {"AddMM": 3, "CustomKernel": 1}),
        # The hidden state to float32; the reads come in the model's dtype.
        (mx.bfloat16, 1, {"AsType": 1, "AddMM": 3, "CustomKernel": 1}),
        (mx.bfloat16, 8, {"AsType": 1, "AddMM": 3, "CustomKernel": 1}),
    ],
    ids=["float32", "bfloat16", "batch-8"],
)
def test_on_metal_a_layer_launches_at_most_five_kernels(
    metal_graph: None, dtype: mx.Dtype, batch_size: int, launches: dict[str, int], tokens: int
) -> None:
    plain = tiny_model("llama")
    plain.set_dtype(dtype)
    patched = attached(plain, {})
    added = exported(patched, batch_size, tokens)
    added.subtract(exported(plain, batch_size, tokens))
    for look in (*VIEWS, "Reshape"):  # of whole rows, which lie in a row
        del added[look]
    assert {name: n / 2 for name, n in added.items() if n} == launches


def test_one_layer_of_two_counts_as_one() -> None:
    plain = tiny_model()
    one = attached(plain, {"target_layers": (1,)})
    assert added_per_layer(plain, one) == added_per_layer(plain, attached(plain, {}))


def test_the_count_is_that_of_one_step_whatever_came_before() -> None:
    model = attached(tiny_model(), {})
    counts = []
    for tokens in (1, 40):
        cache = make_prompt_cache(model)
        for _ in range(3):  # nothing evaluated in between
            logits = model(mx.zeros((1, tokens), mx.int32), cache=cache)
        mx.eval(logits)
        counts.append(count_primitives(model, cache))
    assert counts[0] == counts[1]


def test_decoding_does_not_grow_the_graph() -> None:
    """What a step leaves pending when only its logits are asked for, the next one computes."""
    model = attached(tiny_model(), {})
    cache = make_prompt_cache(model)
    pending = []
    for _ in range(6):
        mx.eval(model(mx.zeros((1, 1), mx.int32), cache=cache))
        pending.append(primitives_of(*(entry.memory.matrix for entry in cache)))
    assert pending[2] == pending[5]


def primitives_of(*arrays: mx.array) -> int:
    graph = io.StringIO()
    mx.export_to_dot(graph, *arrays)
    return graph.getvalue().count("shape=rectangle")


def test_a_fused_function_counts_once() -> None:
    class Model(nn.Module):
        def __call__(self, tokens: mx.array, cache: list) -> mx.array:
            return mx.compile(lambda x: mx.exp(x) * x + 1)(mx.take(cache[0].state[0], tokens))

    count = count_primitives(Model(), [SimpleNamespace(state=[mx.ones((1, 3))])])
    fused, other = Counter(), Counter()
    for name, n in count.items():
        (fused if name.startswith("Compiled") else other)[name] = n
    assert fused.total() == 1
    assert other.keys().isdisjoint({"Exp", "Multiply", "Add"})
