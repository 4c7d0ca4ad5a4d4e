"""Every form of the scan gives the recurrent form's reads, state and gradients."""

import gc
import math
import re
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamem_mlx import ops
from deltamem_mlx.ops import ScanSpec, Short, activate, delta_scan, squash, step_for
from deltamem_mlx.ops.chunk import chunk_scan
from deltamem_mlx.ops.triangular import compiled_short

pytestmark = pytest.mark.fused

NAMES = ("state", "q", "k", "v", "keep", "erase", "write")
AWKWARD = [
    *((1, T, 1, 8) for T in (1, 2, 3, 7, 8, 9, 31, 32, 33, 63, 100, 256, 257, 300)),
    *((2, 63, 4, 8), (3, 100, 2, 4), (8, 17, 1, 8), (2, 129, 3, 2)),
    *((1, 130, 1, 1), (2, 65, 1, 16), (1, 40, 2, 32), (1, 33, 2, 5)),
]
WITH_GRADIENT = [
    (1, 1, 1, 8),
    (1, 9, 1, 8),
    (1, 151, 1, 2),
    (2, 63, 2, 8),
    (3, 100, 1, 4),
    (1, 30, 2, 32),
]
SPECS = [
    ScanSpec(8, 1),
    ScanSpec(8, 4),
    ScanSpec(4, 3, state_update_mode="lambda_outside", uses_lambda=True, rankwise_gates=False),
    ScanSpec(5, 2, state_update_mode="lambda_outside"),
    ScanSpec(8, 1, state_update_mode="no_lambda", normalize_qk=False),
    ScanSpec(1, 2, uses_lambda=True),
]


def shape_id(value: object) -> str | None:
    if isinstance(value, ScanSpec):
        gates = "rankwise" if value.rankwise_gates else "shared"
        return f"{value.state_update_mode}-H{value.heads}-r{value.rank}-{gates}"
    if isinstance(value, tuple):
        return "-".join(f"{name}{n}" for name, n in zip("BTHr", value, strict=True))
    return None


def scan_inputs(B: int, T: int, H: int, r: int, extreme: bool = False) -> dict[str, mx.array]:
    """A random state and tokens; `extreme` gates lie near or at 0 and 1."""
    keys = mx.random.split(mx.random.key(B + 10 * T + 1000 * H + 10000 * r), 9)
    normal = [mx.random.normal((B, T, H, r), key=key) for key in keys[:5]]
    q, k = (x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in normal[:2])
    write, keep = mx.sigmoid(normal[3] - 1.5), mx.sigmoid(normal[4] + 1.5)
    erase = write
    if extreme:
        edges = mx.array([0.0, 1.0, 1e-30, 1e-6, 1 - 1e-6, 0.5, 1e-3, 1.0])
        draws = [mx.random.randint(0, len(edges), (B, T, H, r), key=key) for key in keys[5:8]]
        keep, erase, write = (edges[i] for i in draws)
    state = mx.random.normal((B, H, r, r), key=keys[8])
    return dict(zip(NAMES, (state, q, k, normal[2], keep, erase, write), strict=True))


def random_mask(B: int, T: int) -> mx.array:
    return mx.random.uniform(shape=(B, T), key=mx.random.key(T)) > 0.4


def assert_close(name: str, found: mx.array, expected: mx.array, rtol: float) -> None:
    """`found` differs from `expected` by at most `rtol` of the largest entry of `expected`."""
    assert found.shape == expected.shape, f"{name}: {found.shape}, expected {expected.shape}"
    assert found.dtype == expected.dtype, f"{name}: {found.dtype}, expected {expected.dtype}"
    scale = max(mx.abs(expected).max().item(), 1e-30) if expected.size else 1.0
    error = mx.abs(found - expected).max().item() / scale if expected.size else 0.0
    assert error <= rtol, f"{name}: relative error {error:.2e}, allowed {rtol:.0e}"


def assert_same_scan(inputs: dict[str, mx.array], mask: mx.array | None, **found: str) -> None:
    reads, state = delta_scan(**inputs, mask=mask, **found)
    expected_reads, expected_state = delta_scan(**inputs, mask=mask, form="recurrent")
    assert_close("reads", reads, expected_reads, 1e-5)
    assert_close("state", state, expected_state, 1e-5)


def gradients(inputs: dict[str, mx.array], mask: mx.array | None, form: str) -> list[mx.array]:
    """Of every input, for a loss that weighs each read and each entry of the state differently."""

    def loss(*tensors: mx.array) -> mx.array:
        outputs = delta_scan(*tensors, mask, form=form)
        return sum((x * mx.cos(mx.arange(x.size)).reshape(x.shape)).sum() for x in outputs)

    return mx.grad(loss, argnums=list(range(len(NAMES))))(*inputs.values())


def in_file_order(spec: ScanSpec, T: int, B: int = 2) -> mx.array:
    """Random projections [B, T, P] in the order of an adapter's separate tensors."""
    return 2 * mx.random.normal((B, T, spec.projected_width), key=mx.random.key(T))


def pack(spec: ScanSpec, projected: mx.array) -> mx.array:
    return spec.pack(projected.moveaxis(-1, 0)).moveaxis(0, -1)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("shape", AWKWARD, ids=shape_id)
def test_chunk_equals_recurrent(shape: tuple[int, ...], masked: bool) -> None:
    mask = random_mask(*shape[:2]) if masked else None
    assert_same_scan(scan_inputs(*shape), mask, form="chunk")


@pytest.mark.parametrize("shape", [(1, 300, 1, 8), (2, 63, 4, 8), (1, 100, 1, 32)], ids=shape_id)
def test_gates_at_zero_and_one_neither_overflow_nor_vanish(shape: tuple[int, ...]) -> None:
    assert_same_scan(scan_inputs(*shape, extreme=True), random_mask(*shape[:2]), form="chunk")


@pytest.mark.parametrize("extreme", [False, True], ids=["plain", "extreme"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("shape", WITH_GRADIENT, ids=shape_id)
def test_every_gradient_of_chunk_equals_recurrent(
    shape: tuple[int, ...], masked: bool, extreme: bool
) -> None:
    inputs, mask = scan_inputs(*shape, extreme), random_mask(*shape[:2]) if masked else None
    expected = gradients(inputs, mask, "recurrent")
    for name, *pair in zip(NAMES, gradients(inputs, mask, "chunk"), expected, strict=True):
        assert_close(f"d{name}", *pair, 1e-4)


@pytest.mark.parametrize("size", [1, 4, 8, 16, 32, 64])
def test_the_chunk_size_does_not_matter(size: int) -> None:
    inputs = scan_inputs(2, 65, 2, 8)
    reads, state = chunk_scan(**inputs, size=size)
    expected_reads, expected_state = delta_scan(**inputs, form="recurrent")
    assert_close("reads", reads, expected_reads, 1e-5)
    assert_close("state", state, expected_state, 1e-5)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(cut=st.integers(0, 70), length=st.integers(1, 70), masked=st.booleans())
def test_a_scan_in_two_parts_equals_the_whole(
    form: str, cut: int, length: int, masked: bool
) -> None:
    inputs = scan_inputs(2, length, 1, 4)
    mask = random_mask(2, length) if masked else mx.ones((2, length), mx.bool_)
    state, *tokens = inputs.values()
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        reads, state = delta_scan(state, *(x[:, part] for x in tokens), mask[:, part], form=form)
        parts.append(reads)
    reads, whole = delta_scan(**inputs, mask=mask, form="recurrent")
    assert_close("reads", mx.concatenate(parts, axis=1), reads, 1e-5)
    assert_close("state", state, whole, 1e-5)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
def test_a_masked_token_reads_zero_and_leaves_no_trace_even_of_nan(form: str) -> None:
    inputs, mask = scan_inputs(2, 40, 1, 8), random_mask(2, 40)
    dirty = {
        name: x if name == "state" else mx.where(mask[..., None, None], x, math.nan)
        for name, x in inputs.items()
    }
    reads, state = delta_scan(**dirty, mask=mask, form=form)
    expected_reads, expected_state = delta_scan(**inputs, mask=mask, form="recurrent")
    assert mx.where(mask[..., None, None], 0, reads).abs().max().item() == 0
    assert_close("reads", reads, expected_reads, 1e-5)
    assert_close("state", state, expected_state, 1e-5)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16], ids=["bfloat16", "float16"])
def test_half_precision_inputs_are_scanned_in_float32(dtype: mx.Dtype) -> None:
    half = {name: x.astype(dtype) for name, x in scan_inputs(2, 50, 1, 8).items()}
    exact = {name: x.astype(mx.float32) for name, x in half.items()}
    reads, state = delta_scan(**half)
    expected_reads, expected_state = delta_scan(**exact, form="recurrent")
    assert_close("reads", reads, expected_reads, 1e-5)
    assert_close("state", state, expected_state, 1e-5)


def test_the_memory_of_a_gradient_grows_with_the_tokens_and_no_faster() -> None:
    def peak(T: int) -> int:
        inputs = scan_inputs(1, T, 1, 8)
        mx.eval(inputs)
        gc.collect()
        mx.synchronize()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(gradients(inputs, None, "chunk"))
        return mx.get_peak_memory() - before

    assert peak(4096) < 2.5 * peak(2048)


def test_the_gradient_survives_checkpointing() -> None:
    inputs = list(scan_inputs(1, 40, 1, 8).values())

    def loss(scan: Callable[..., tuple[mx.array, mx.array]]) -> Callable[..., mx.array]:
        return lambda *tensors: scan(*tensors)[0].square().sum()

    expected = mx.grad(loss(chunk_scan), argnums=range(7))(*inputs)
    found = mx.grad(loss(mx.checkpoint(chunk_scan)), argnums=range(7))(*inputs)
    for name, *pair in zip(NAMES, found, expected, strict=True):
        assert_close(f"d{name}", *pair, 1e-6)


def expected_activation(spec: ScanSpec, projected: mx.array) -> list[mx.array]:
    """Sections 2 and 3 of the definition, from projections in file order."""
    B, T, _ = projected.shape
    M, G = spec.read_width, spec.read_width if spec.rankwise_gates else spec.heads
    q, k, v, *gates = mx.split(projected, [M, 2 * M, 3 * M, 3 * M + G], axis=-1)
    q, k, v = (x.reshape(B, T, spec.heads, spec.rank) for x in (q, k, v))
    if spec.normalize_qk:
        q, k = (mx.tanh(x) for x in (q, k))
        q, k = (x / mx.maximum(mx.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (q, k))
    gates = [mx.sigmoid(x).reshape(B, T, spec.heads, -1) for x in gates if x.size]
    beta, lam = gates if spec.uses_lambda else (gates[0], 1 - gates[0])
    keep, erase = {
        "standard": (lam, beta),
        "lambda_outside": (lam, lam * beta),
        "no_lambda": (mx.ones_like(beta), beta),
    }[spec.state_update_mode]
    return [q, k, v, *(mx.broadcast_to(x, v.shape) for x in (keep, erase, beta))]


@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_activate_follows_the_definition(spec: ScanSpec) -> None:
    projected = in_file_order(spec, T=5)
    found = activate(pack(spec, projected), spec)
    expected = expected_activation(spec, projected)
    for name, *pair in zip(NAMES[1:], found, expected, strict=True):
        assert_close(name, *pair, 1e-6)


def test_many_tokens_are_activated_alike() -> None:
    """From some number of values on, tanh and sigmoid are computed in another way."""
    for spec in (SPECS[1], SPECS[2], SPECS[5]):
        projected = 3 * in_file_order(spec, T=400, B=3)
        found = activate(pack(spec, projected), spec)
        expected = expected_activation(spec, projected)
        for name, *pair in zip(NAMES[1:], found, expected, strict=True):
            assert_close(name, *pair, 1e-6)


def test_tanh_and_sigmoid_of_many_values() -> None:
    x = mx.concatenate([mx.linspace(-30, 30, 9001), mx.linspace(-1e-3, 1e-3, 1001)])
    x = mx.concatenate([x, mx.array([0.0, math.inf, -math.inf, 1e30, -1e-30])])
    wide = np.array(x).astype(np.float64)
    tanh, sigmoid = np.array(squash.tanh(x)), np.array(squash.sigmoid(x))
    assert np.all(np.abs(tanh - np.tanh(wide)) <= 4e-7 * np.abs(np.tanh(wide)))
    with np.errstate(over="ignore"):
        assert np.abs(sigmoid - 1 / (1 + np.exp(-wide))).max() <= 2e-7
    assert np.abs(tanh).max() == 1
    assert (sigmoid.min(), sigmoid.max()) == (0, 1)
    for ours, theirs in ((squash.tanh, mx.tanh), (squash.sigmoid, mx.sigmoid)):
        found = mx.grad(lambda x, f=ours: f(x).sum())(x)
        assert_close("dx", found, mx.grad(lambda x, f=theirs: f(x).sum())(x), 1e-6)


@pytest.mark.parametrize("B", [1, 8])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_step_equals_activate_and_recurrent(spec: ScanSpec, B: int) -> None:
    projected = pack(spec, in_file_order(spec, T=1, B=B))
    state = scan_inputs(B, 1, spec.heads, spec.rank)["state"]
    reads, new = step_for(spec)(state, projected.swapaxes(0, 1))
    expected_reads, expected = delta_scan(state, *activate(projected, spec), form="recurrent")
    assert_close("reads", reads, expected_reads.flatten(2).swapaxes(0, 1), 1e-6)
    assert_close("state", new, expected, 1e-6)


@pytest.mark.parametrize("spec", [ScanSpec(8, 1), ScanSpec(8, 4)], ids=shape_id)
def test_conversations_that_only_read_keep_their_state_in_a_step(spec: ScanSpec) -> None:
    assert_held_step(step_for(spec), spec)


def test_step_of_zeros_is_finite() -> None:
    spec = ScanSpec(8, 1)
    reads, state = step_for(spec)(mx.ones((1, 1, 8, 8)), mx.zeros((1, 1, 40)))
    assert_close("reads", reads, mx.zeros((1, 1, 8)), 0)
    assert_close("state", state, mx.full((1, 1, 8, 8), 0.5), 1e-6)


def test_step_takes_bfloat16_projections_and_keeps_a_float32_state() -> None:
    spec = ScanSpec(8, 1)
    projected = pack(spec, in_file_order(spec, T=1)).swapaxes(0, 1).astype(mx.bfloat16)
    state = scan_inputs(2, 1, 1, 8)["state"]
    found = step_for(spec)(state, projected)
    expected = step_for(spec)(state, projected.astype(mx.float32))
    for name, *pair in zip(("reads", "state"), found, expected, strict=True):
        assert_close(name, *pair, 1e-6)


@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_step_is_no_more_than_nine_primitives(spec: ScanSpec, tmp_path: Path) -> None:
    state = mx.zeros((1, spec.heads, spec.rank, spec.rank))
    projected = mx.zeros((1, 1, spec.packed_width))
    mx.eval(state, projected)
    graph = tmp_path / "step.dot"
    mx.export_to_dot(str(graph), *ops.compiled_step(spec)(state, projected))
    primitives = re.findall(r'label ="(\w+)", shape=rectangle', graph.read_text())
    if not any(name.startswith("Compiled") for name in primitives):
        pytest.skip("MLX cannot compile here: no C++ compiler")
    assert len(primitives) <= 9, primitives


# --- few tokens at once


def assert_held_step(step: ops.DecodeStep, spec: ScanSpec) -> None:
    """Where it may not write, a step reads as ever and the state stays bit for bit."""
    projected = pack(spec, in_file_order(spec, T=1, B=3)).swapaxes(0, 1)
    state = scan_inputs(3, 1, spec.heads, spec.rank)["state"]
    writes = mx.array([[True], [False], [True]])
    (reads, new), (same, moved) = step(state, projected, writes), step(state, projected)
    assert mx.array_equal(reads, same)
    assert mx.array_equal(new, mx.where(writes[..., None, None], moved, state))


def assert_same_short(
    short: Short,
    spec: ScanSpec,
    B: int,
    T: int,
    masked: bool,
    dtype: mx.Dtype = mx.float32,
    scale: float = 1.0,
) -> None:
    """What the short form reads and leaves is what the recurrent form does."""
    scale *= 1.0 if spec.normalize_qk else 0.2  # long keys make any state grow without end
    projected = (scale * pack(spec, in_file_order(spec, T=T, B=B))).astype(dtype)
    state = scan_inputs(B, T, spec.heads, spec.rank)["state"]
    writes, tokens = (random_mask(B, T) if masked else None), activate(projected, spec)
    tokens = tokens if writes is None else tokens.held(writes)
    reads, new = short(state, projected, writes)
    expected_reads, expected = delta_scan(state, *tokens, form="recurrent")
    assert_close("reads", reads, expected_reads.flatten(2), 1e-5)
    assert_close("state", new, expected, 1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "some write"])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_short_calls_equal_the_recurrent_form(spec: ScanSpec, masked: bool) -> None:
    for B, T in [
        (1, 1),
        (1, 2),
        (2, 3),
        (3, 4),
        (1, 8),
        (3, 15),
        (9, 17),
        (1, 32),
        (2, 33),
        (1, 257),
    ]:
        assert_same_short(compiled_short(spec), spec, B, T, masked)


@pytest.mark.parametrize("spec", [s for s in SPECS if s.normalize_qk], ids=shape_id)
def test_short_calls_are_exact_where_gates_are_shut_or_open(spec: ScanSpec) -> None:
    """Sigmoids of hundreds are 0 and 1: what is kept is nothing, or all."""
    for scale in (30.0, 300.0, 0.0):
        assert_same_short(compiled_short(spec), spec, 2, 40, masked=False, scale=scale)


def test_gradients_pass_through_short_calls() -> None:
    spec, writes = ScanSpec(4, 2), random_mask(2, 37)
    projected = pack(spec, in_file_order(spec, T=37, B=2))
    state = scan_inputs(2, 37, 2, 4)["state"]

    def short(state: mx.array, projected: mx.array) -> mx.array:
        found = compiled_short(spec)(state, projected, writes)
        return sum((x * mx.cos(x)).sum() for x in found)

    def walked(state: mx.array, projected: mx.array) -> mx.array:
        tokens = activate(projected, spec).held(writes)
        return sum((x * mx.cos(x)).sum() for x in delta_scan(state, *tokens, form="recurrent"))

    found = mx.grad(short, argnums=[0, 1])(state, projected)
    expected = mx.grad(walked, argnums=[0, 1])(state, projected)
    for name, *pair in zip(("dstate", "dprojected"), found, expected, strict=True):
        assert_close(name, *pair, 1e-4)


def test_tokens_that_only_read_leave_the_state_bit_for_bit() -> None:
    spec = ScanSpec(8, 4)
    projected = pack(spec, in_file_order(spec, T=50, B=2))
    state = scan_inputs(2, 50, 4, 8)["state"]
    new = compiled_short(spec)(state, projected, mx.zeros((2, 50), mx.bool_))[1]
    assert mx.array_equal(new, state)


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        (ScanSpec(8, 1), {2: 23, 4: 31, 8: 40, 32: 44, 64: 66, 65: 67, 128: 70}),
        (ScanSpec(8, 4), {2: 23, 4: 31, 8: 44, 32: 66, 64: 70, 65: 99, 128: 108}),
    ],
    ids=["one-state", "four-states"],
)
def test_a_short_call_is_as_many_primitives_whatever_its_tokens(
    spec: ScanSpec, bounds: dict[int, int], tmp_path: Path
) -> None:
    for T, most in bounds.items():
        state = mx.zeros((1, spec.heads, spec.rank, spec.rank))
        projected = mx.zeros((1, T, spec.packed_width))
        mx.eval(state, projected)
        graph = tmp_path / "short.dot"
        mx.export_to_dot(str(graph), *compiled_short(spec)(state, projected, None))
        primitives = re.findall(r'label ="(\w+)", shape=rectangle', graph.read_text())
        if not any(name.startswith("Compiled") for name in primitives):
            pytest.skip("MLX cannot compile here: no C++ compiler")
        assert len(primitives) <= most, primitives


def test_projections_of_a_wrong_width_are_refused() -> None:
    spec = ScanSpec(8, 1)
    with pytest.raises(ValueError, match="32 columns, expected 40"):
        activate(mx.zeros((1, 3, 32)), spec)


def test_all_shapes_that_do_not_fit_are_listed() -> None:
    inputs = scan_inputs(2, 5, 1, 8)
    inputs["k"], inputs["write"] = inputs["k"][:, :4], inputs["write"][..., :1]
    with pytest.raises(ValueError) as error:
        delta_scan(**inputs, mask=mx.ones((2, 6)))
    assert str(error.value).splitlines()[1:] == [
        "  k: [2, 4, 1, 8], expected [2, 5, 1, 8]",
        "  write: [2, 5, 1, 1], expected [2, 5, 1, 8]",
        "  mask: [2, 6], expected [2, 5]",
    ]
    with pytest.raises(ValueError, match=r"state is \[2, 8, 8\]"):
        delta_scan(**{**inputs, "state": mx.zeros((2, 8, 8))})


def test_the_form_is_taken_from_the_argument_then_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ops, "why_not_metal", lambda: "no such device")
    inputs, called = scan_inputs(1, 20, 1, 4), []
    for name in ("recurrent_scan", "chunk_scan"):
        scan = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *a, n=name, s=scan, **k: called.append(n) or s(*a, **k)
        )
    delta_scan(**inputs)
    monkeypatch.setenv("DELTAMEM_SCAN", "recurrent")
    delta_scan(**inputs)
    delta_scan(**inputs, form="chunk")
    assert called == ["chunk_scan", "recurrent_scan", "chunk_scan"]


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = scan_inputs(1, 3, 1, 4)
    with pytest.raises(ValueError, match=r"form=fast is not a form.*recurrent, chunk, metal"):
        delta_scan(**inputs, form="fast")
    monkeypatch.setenv("DELTAMEM_SCAN", "cuda")
    with pytest.raises(ValueError, match="DELTAMEM_SCAN=cuda is not a form"):
        delta_scan(**inputs)
    with pytest.raises(ValueError, match="DELTAMEM_SCAN=cuda is not a form"):
        step_for(ScanSpec(4, 1))


def test_metal_by_name_without_metal_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "why_not_metal", lambda: "no such device")
    monkeypatch.setenv("DELTAMEM_SCAN", "metal")
    with pytest.raises(RuntimeError, match="DELTAMEM_SCAN=metal cannot run here: no such device"):
        delta_scan(**scan_inputs(1, 3, 1, 4))
