"""The Metal kernels: their very source compiled as C++, and run by MLX where there is a GPU."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from test_ops import (
    NAMES,
    SPECS,
    assert_close,
    assert_held_step,
    assert_same_scan,
    assert_same_short,
    gradients,
    in_file_order,
    pack,
    random_mask,
    scan_inputs,
    shape_id,
)

from deltamem_mlx import ops
from deltamem_mlx.ops import ScanSpec, activate, delta_scan, metal, short_for, step_for

pytestmark = pytest.mark.fused

COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
SHAPES = [(1, 1, 1, 8), (2, 63, 4, 8), (3, 17, 2, 5), (1, 100, 1, 1), (1, 20, 2, 32)]

# What Metal has and C++ lacks, for the kernels' bodies; threads become the turns of a loop.
SHIM = """
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace metal {
template <typename T> T max(T a, T b) { return a > b ? a : b; }
namespace precise {
inline float exp(float x) { return std::exp(x); }
inline float sqrt(float x) { return std::sqrt(x); }
inline float tanh(float x) { return std::tanh(x); }
}
}

struct uint3 { unsigned x, y, z; };

struct bfloat16 {
  uint16_t bits;
  bfloat16() = default;
  explicit bfloat16(float value) {
    uint32_t wide;
    std::memcpy(&wide, &value, sizeof wide);
    bits = (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
  }
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
};

%(header)s

static void kernel(%(parameters)s, uint3 thread_position_in_grid) {
  %(constants)s
  %(source)s
}

extern "C" void run(unsigned threads, %(parameters)s) {
  for (unsigned x = 0; x < threads; ++x) {
    kernel(%(arguments)s, uint3{x, 0, 0});
  }
}
"""
TYPES = {mx.float32: "float", mx.bfloat16: "bfloat16", mx.bool_: "bool"}


class CompiledAsCpp:
    """Stands in for what `mx.fast.metal_kernel` returns: same call, the source run as C++."""

    def __init__(self, folder: Path, inputs: list[str], source: str, header: str = ""):
        self.folder, self.inputs, self.source, self.header = folder, inputs, source, header
        self.libraries: dict[str, ctypes.CDLL] = {}

    def __call__(
        self,
        *,
        inputs: list[mx.array | int],
        template: list[tuple[str, int | bool | mx.Dtype]],
        grid: tuple[int, int, int],
        threadgroup: tuple[int, int, int],
        output_shapes: list[tuple[int, ...]],
        output_dtypes: list[mx.Dtype],
    ) -> list[mx.array]:
        assert grid[1:] == threadgroup[1:] == (1, 1)
        values = [x if isinstance(x, int) else as_numpy(x) for x in inputs]
        unwritten = {mx.float32: np.float32(math.nan), mx.bfloat16: np.uint16(0x7FC0)}  # no number
        outputs = [
            np.full(shape, unwritten[dtype])
            for shape, dtype in zip(output_shapes, output_dtypes, strict=True)
        ]
        types = ["int" if isinstance(x, int) else f"const {TYPES[x.dtype]}*" for x in inputs]
        types += [f"{TYPES[dtype]}*" for dtype in output_dtypes]
        self.library(types, template).run(grid[0], *map(as_c, [*values, *outputs]))
        found = map(mx.array, outputs)
        return [x.view(mx.bfloat16) if x.dtype == mx.uint16 else x for x in found]

    def library(
        self, types: list[str], template: list[tuple[str, int | bool | mx.Dtype]]
    ) -> ctypes.CDLL:
        names = [*self.inputs, "reads", "state_out"]
        code = SHIM % {
            "header": self.header,
            "source": self.source,
            "parameters": ", ".join(f"{t} {n}" for t, n in zip(types, names, strict=True)),
            "constants": "\n  ".join(
                f"using {n} = {TYPES[v]};"
                if isinstance(v, mx.Dtype)
                else f"constexpr int {n} = {int(v)};"
                for n, v in template
            ),
            "arguments": ", ".join(names),
        }
        if code not in self.libraries:
            source = self.folder / f"kernel{len(list(self.folder.glob('*.cpp')))}.cpp"
            source.write_text(code)
            shared = source.with_suffix(".so")
            command = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror"]
            command += ["-Wno-unused-variable", "-Wno-unused-parameter", "-shared", "-fPIC"]
            subprocess.run([*command, str(source), "-o", str(shared)], check=True)
            self.libraries[code] = ctypes.CDLL(str(shared))
        return self.libraries[code]


def as_numpy(x: mx.array) -> np.ndarray:
    return np.array(mx.contiguous(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x))


def as_c(value: np.ndarray | int) -> ctypes.c_int | ctypes.c_void_p:
    if isinstance(value, int):
        return ctypes.c_int(value)
    return ctypes.c_void_p(value.ctypes.data)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompiledAsCpp, CompiledAsCpp]:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("kernels")
    return (
        CompiledAsCpp(folder, metal.SCAN_INPUTS, metal.SCAN_SOURCE),
        CompiledAsCpp(folder, metal.SHORT_INPUTS, metal.SHORT_SOURCE, metal.HEADER),
    )


@pytest.fixture
def emulated(
    compiled: tuple[CompiledAsCpp, CompiledAsCpp], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The metal form with its kernels run as C++."""
    monkeypatch.setattr(metal, "_kernels", lambda: compiled)
    monkeypatch.setattr(ops, "why_not_metal", metal._fault.__wrapped__)


@pytest.fixture
def gpu() -> Iterator[None]:
    if reason := metal.why_not_metal():
        pytest.fail(f"the metal form cannot run: {reason}")
    yield


@pytest.mark.parametrize("extreme", [False, True], ids=["plain", "extreme"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_scan_kernel_equals_recurrent(
    emulated: None, shape: tuple[int, ...], masked: bool, extreme: bool
) -> None:
    mask = random_mask(*shape[:2]) if masked else None
    assert_same_scan(scan_inputs(*shape, extreme=extreme), mask, form="metal")


def test_scan_kernel_takes_bfloat16(emulated: None) -> None:
    inputs = scan_inputs(2, 30, 2, 8)
    state, *tokens = inputs.values()
    half = [x.astype(mx.bfloat16) for x in tokens]
    found = metal.metal_scan(state, *half)
    expected = delta_scan(state, *(x.astype(mx.float32) for x in half), form="recurrent")
    for name, *pair in zip(("reads", "state"), found, expected, strict=True):
        assert_close(name, *pair, 1e-5)


def test_scan_kernel_skips_masked_nan(emulated: None) -> None:
    inputs, mask = scan_inputs(2, 20, 1, 4), random_mask(2, 20)
    dirty = dict(inputs, k=mx.where(mask[..., None, None], inputs["k"], math.nan))
    reads, state = delta_scan(**dirty, mask=mask, form="metal")
    expected_reads, expected_state = delta_scan(**inputs, mask=mask, form="recurrent")
    assert_close("reads", reads, expected_reads, 1e-5)
    assert_close("state", state, expected_state, 1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_gradients_pass_through_the_scan_kernel(emulated: None, masked: bool) -> None:
    inputs, mask = scan_inputs(2, 33, 2, 4), random_mask(2, 33) if masked else None
    expected = gradients(inputs, mask, "recurrent")
    for name, *pair in zip(NAMES, gradients(inputs, mask, "metal"), expected, strict=True):
        assert_close(f"d{name}", *pair, 1e-4)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_step_kernel_equals_activate_and_recurrent(
    emulated: None, spec: ScanSpec, B: int, dtype: mx.Dtype
) -> None:
    projected = pack(spec, in_file_order(spec, T=1, B=B)).astype(dtype)
    state = scan_inputs(B, 1, spec.heads, spec.rank)["state"]
    reads, new = metal.metal_step(spec)(state, projected.swapaxes(0, 1))
    expected_reads, expected = delta_scan(state, *activate(projected, spec), form="recurrent")
    assert_close("reads", reads, expected_reads.flatten(2).swapaxes(0, 1), 1e-5)
    assert_close("state", new, expected, 1e-5)


def test_conversations_that_only_read_keep_their_state_in_a_step(emulated: None) -> None:
    spec = ScanSpec(8, 2)
    assert_held_step(metal.metal_step(spec), spec)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_short_kernel_equals_the_recurrent_form(
    emulated: None, spec: ScanSpec, masked: bool, dtype: mx.Dtype
) -> None:
    for B, T in [(1, 2), (3, 9), (2, 65)]:
        assert_same_short(short_for(spec), spec, B, T, masked, dtype)


def test_reads_come_in_the_dtype_that_is_wanted(emulated: None) -> None:
    spec = ScanSpec(8, 2)
    projected = pack(spec, in_file_order(spec, T=3, B=2))
    state = scan_inputs(2, 3, 2, 8)["state"]
    exact, new = short_for(spec)(state, projected, None)
    reads, same = short_for(spec, mx.bfloat16)(state, projected, None)
    assert (exact.dtype, new.dtype) == (mx.float32, mx.float32)
    assert mx.array_equal(reads, exact.astype(mx.bfloat16)) and mx.array_equal(same, new)
    first = projected[:, :1].swapaxes(0, 1)
    assert mx.array_equal(step_for(spec, mx.bfloat16)(state, first)[0][0], reads[:, 0])


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
def test_gradients_pass_through_the_short_kernel(emulated: None, dtype: mx.Dtype) -> None:
    spec, writes = ScanSpec(4, 2), random_mask(2, 9)
    projected = pack(spec, in_file_order(spec, T=9, B=2))
    state = scan_inputs(2, 9, 2, 4)["state"]

    def loss(state: mx.array, projected: mx.array) -> mx.array:
        reads, new = short_for(spec, dtype)(state, projected, writes)
        return sum((x * mx.cos(x)).sum().astype(mx.float32) for x in (reads, new))

    def expected(state: mx.array, projected: mx.array) -> mx.array:
        tokens = activate(projected, spec).held(writes)
        return sum((x * mx.cos(x)).sum() for x in delta_scan(state, *tokens, form="recurrent"))

    found = mx.grad(loss, argnums=[0, 1])(state, projected)
    for name, *pair in zip(
        ("dstate", "dprojected"),
        found,
        mx.grad(expected, argnums=[0, 1])(state, projected),
        strict=True,
    ):
        assert_close(name, *pair, 1e-4 if dtype == mx.float32 else 3e-2)


def test_step_kernel_is_finite_on_zeros_and_large_values(emulated: None) -> None:
    spec = ScanSpec(8, 1)
    for scale in (0.0, 300.0):
        projected = scale * pack(spec, in_file_order(spec, T=1, B=1))
        found = metal.metal_step(spec)(mx.ones((1, 1, 8, 8)), projected)
        expected = ops.compiled_step(spec)(mx.ones((1, 1, 8, 8)), projected)
        for name, *pair in zip(("reads", "state"), found, expected, strict=True):
            assert_close(name, *pair, 1e-5)


def test_gradients_pass_through_the_step_kernel(emulated: None) -> None:
    spec = ScanSpec(4, 2)
    projected = pack(spec, in_file_order(spec, T=1)).swapaxes(0, 1)
    arguments = scan_inputs(2, 1, 2, 4)["state"], projected

    def loss(step: Callable[..., tuple[mx.array, mx.array]]) -> Callable[..., mx.array]:
        return lambda *args: sum((x * mx.cos(x)).sum() for x in step(spec)(*args))

    expected = mx.grad(loss(ops.compiled_step), argnums=[0, 1])(*arguments)
    found = mx.grad(loss(metal.metal_step), argnums=[0, 1])(*arguments)
    for name, *pair in zip(("dstate", "dprojected"), found, expected, strict=True):
        assert_close(name, *pair, 1e-5)


def test_metal_is_picked_where_its_kernels_work(
    emulated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []
    for name in ("metal_scan", "metal_step"):
        f = getattr(metal, name)
        monkeypatch.setattr(ops, name, lambda *a, n=name, f=f, **k: called.append(n) or f(*a, **k))
    spec = ScanSpec(4, 1)
    projected = pack(spec, in_file_order(spec, T=1, B=1))
    delta_scan(**scan_inputs(1, 9, 1, 4))
    step_for(spec)(mx.zeros((1, 1, 4, 4)), projected)
    assert called == ["metal_scan", "metal_step"]
    monkeypatch.setenv("DELTAMEM_SCAN", "chunk")
    assert short_for(spec) is None
    delta_scan(**scan_inputs(1, 9, 1, 4))
    step_for(spec)(mx.zeros((1, 1, 4, 4)), projected)
    assert called == ["metal_scan", "metal_step"]


def test_a_kernel_that_fails_or_is_wrong_never_serves(
    compiled: tuple[CompiledAsCpp, CompiledAsCpp], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(**_: object) -> list[mx.array]:
        raise RuntimeError("no such instruction")

    def wrong(**arguments: object) -> list[mx.array]:
        return [x + 1 for x in compiled[0](**arguments)]

    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    for kernels, reason in [
        (metal._kernels.__wrapped__, "Metal is not available"),
        (lambda: (broken, compiled[1]), "its kernels fail: no such instruction"),
        (lambda: (wrong, compiled[1]), "its kernels give other results than the recurrent form"),
    ]:
        monkeypatch.setattr(metal, "_kernels", kernels)
        monkeypatch.setattr(ops, "why_not_metal", metal._fault.__wrapped__)
        assert metal._fault.__wrapped__() == reason
        assert_same_scan(scan_inputs(1, 20, 1, 4), None)  # falls back
        with pytest.raises(RuntimeError, match=reason):
            delta_scan(**scan_inputs(1, 20, 1, 4), form="metal")


@pytest.mark.metal
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_scan_on_a_gpu_equals_recurrent(gpu: None, shape: tuple[int, ...], masked: bool) -> None:
    mask = random_mask(*shape[:2]) if masked else None
    assert_same_scan(scan_inputs(*shape), mask, form="metal")


@pytest.mark.metal
def test_gradients_of_the_scan_on_a_gpu_equal_recurrent(gpu: None) -> None:
    inputs, mask = scan_inputs(2, 33, 2, 4), random_mask(2, 33)
    expected = gradients(inputs, mask, "recurrent")
    for name, *pair in zip(NAMES, gradients(inputs, mask, "metal"), expected, strict=True):
        assert_close(f"d{name}", *pair, 1e-4)


@pytest.mark.metal
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_step_on_a_gpu_equals_activate_and_recurrent(
    gpu: None, spec: ScanSpec, dtype: mx.Dtype
) -> None:
    projected = pack(spec, in_file_order(spec, T=1, B=3)).astype(dtype)
    state = scan_inputs(3, 1, spec.heads, spec.rank)["state"]
    reads, new = metal.metal_step(spec)(state, projected.swapaxes(0, 1))
    expected_reads, expected = delta_scan(state, *activate(projected, spec), form="recurrent")
    assert_close("reads", reads, expected_reads.flatten(2).swapaxes(0, 1), 1e-5)
    assert_close("state", new, expected, 1e-5)


@pytest.mark.metal
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("spec", SPECS, ids=shape_id)
def test_short_calls_on_a_gpu_equal_the_recurrent_form(
    gpu: None, spec: ScanSpec, masked: bool
) -> None:
    for T in (2, 8, 33, 128):
        assert_same_short(metal.metal_short(spec), spec, 3, T, masked, mx.bfloat16)
