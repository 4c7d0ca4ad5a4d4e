"""The metal form: one launch for a whole scan, and one for a short call, its activations included.

A thread keeps one row of the state in registers and walks the tokens, so the rows need no exchange
and the kernel bodies stay within what Metal and C++ share (the tests compile them as C++).
"""

import math
from collections.abc import Callable, Sequence
from functools import cache, partial

import mlx.core as mx

from .chunk import chunk_scan
from .recurrent import recurrent_scan
from .seams import Arrays, Constant, Kernel, metal_kernel, with_gradient
from .spec import NORM_FLOOR, ScanSpec, activate
from .step import DecodeStep, compiled_step
from .triangular import Short

Pair = tuple[mx.array, mx.array]

SCAN_INPUTS = ["state_in", "q", "k", "v", "keep", "erase", "write", "mask", "T"]
SCAN_SOURCE = """
    const size_t row = thread_position_in_grid.x;  // of all B * H * R rows
    const size_t i = row % R, h = row / R % H, b = row / R / H;

    float s[R];
    for (int a = 0; a < R; ++a) {
      s[a] = state_in[row * R + a];
    }
    for (int t = 0; t < T; ++t) {
      const size_t at = ((b * T + t) * H + h) * R;
      float read = 0.0f;
      if (!MASKED || mask[b * T + t]) {
        float predicted = 0.0f;
        for (int a = 0; a < R; ++a) {
          read += s[a] * static_cast<float>(q[at + a]);
          predicted += s[a] * static_cast<float>(k[at + a]);
        }
        const float written = static_cast<float>(write[at + i]) * static_cast<float>(v[at + i]);
        const float change = written - static_cast<float>(erase[at + i]) * predicted;
        const float kept = static_cast<float>(keep[at + i]);
        for (int a = 0; a < R; ++a) {
          s[a] = kept * s[a] + change * static_cast<float>(k[at + a]);
        }
      }
      reads[at + i] = read;
    }
    for (int a = 0; a < R; ++a) {
      state_out[row * R + a] = s[a];
    }
"""

SHORT_INPUTS = ["state_in", "projected", "writes", "T"]
HEADER = """
    inline float delta_mem_sigmoid(float x) {
      const float y = 1.0f / (1.0f + metal::precise::exp(x < 0.0f ? -x : x));
      return x < 0.0f ? y : 1.0f - y;
    }
"""
SHORT_SOURCE = """
    const size_t row = thread_position_in_grid.x;  // of all B * H * R rows
    const size_t i = row % R, h = row / R % H, b = row / R / H;

    float s[R];
    for (int a = 0; a < R; ++a) {
      s[a] = state_in[row * R + a];
    }
    for (int t = 0; t < T; ++t) {
      const size_t at = ((b * T + t) * H + h) * R, first = at * J;
      float q[R], k[R];
      float qq = 0.0f, kk = 0.0f;
      for (int a = 0; a < R; ++a) {
        q[a] = static_cast<float>(projected[first + a * J]);
        k[a] = static_cast<float>(projected[first + a * J + 1]);
        if (NORMALIZE) {
          q[a] = metal::precise::tanh(q[a]);
          k[a] = metal::precise::tanh(k[a]);
        }
        qq += q[a] * q[a];
        kk += k[a] * k[a];
      }
      const float q_norm = NORMALIZE ? metal::max(metal::precise::sqrt(qq), NORM_FLOOR) : 1.0f;
      const float k_norm = NORMALIZE ? metal::max(metal::precise::sqrt(kk), NORM_FLOOR) : 1.0f;

      float read = 0.0f, predicted = 0.0f;
      for (int a = 0; a < R; ++a) {
        k[a] /= k_norm;
        read += s[a] * (q[a] / q_norm);
        predicted += s[a] * k[a];
      }
      reads[at + i] = static_cast<READS>(read);
      if (!MASKED || writes[b * T + t]) {
        const size_t mine = first + i * J;
        const float v = static_cast<float>(projected[mine + 2]);
        const float beta = delta_mem_sigmoid(static_cast<float>(projected[mine + 3]));
        float keep = 1.0f - beta;
        if (J == 6) {
          keep = delta_mem_sigmoid(static_cast<float>(projected[mine + 4]));
        }
        if (NO_LAMBDA) {
          keep = 1.0f;
        }
        const float erase = LAMBDA_OUTSIDE ? keep * beta : beta;
        const float change = beta * v - erase * predicted;
        for (int a = 0; a < R; ++a) {
          s[a] = keep * s[a] + change * k[a];
        }
      }
    }
    for (int a = 0; a < R; ++a) {
      state_out[row * R + a] = s[a];
    }
""".replace("NORM_FLOOR", f"{NORM_FLOOR}f")


@cache
def _kernels() -> tuple[Kernel, Kernel]:
    """The kernels of a scan and of a short call.

    Raises:
        RuntimeError: Without Metal.
    """
    if not mx.metal.is_available():
        raise RuntimeError("Metal is not available")
    outputs = ["reads", "state_out"]
    scan = metal_kernel("delta_mem_scan", SCAN_INPUTS, outputs, SCAN_SOURCE)
    short = metal_kernel("delta_mem_short", SHORT_INPUTS, outputs, SHORT_SOURCE, HEADER)
    return scan, short


def why_not_metal() -> str | None:
    """Return why the metal form cannot run here, or None if it can."""
    if mx.default_device().type != mx.DeviceType.gpu:
        return "the default device is not a GPU"
    return _fault()


@cache
def _fault() -> str | None:
    """Tries both kernels once, so that one that does not build or fit never serves a model."""
    try:
        _kernels()
    except RuntimeError as error:
        return str(error)
    spec = ScanSpec(rank=4, heads=2)
    state = mx.ones((1, 2, 4, 4))
    projected = spec.pack(mx.sin(mx.arange(spec.projected_width)))[None, None]
    inputs = activate(projected, spec)
    short = partial(_launch_short, spec, None, state=state, projected=projected)
    try:
        found = [*_launch_scan(None, state, *inputs), *short(mx.float32), short(mx.bfloat16)[0]]
        expected = [*recurrent_scan(state, *inputs), *compiled_step(spec)(state, projected)]
        expected.append(expected[2])
        close = [
            mx.allclose(x, y, atol=1e-4 if x.dtype == mx.float32 else 2e-2)
            for x, y in zip(found, expected, strict=True)
        ]
        agree = all(same.item() for same in close)
    except Exception as error:
        return f"its kernels fail: {error}"
    return None if agree else "its kernels give other results than the recurrent form"


def metal_scan(
    state: mx.array,
    q: mx.array,
    k: mx.array,
    v: mx.array,
    keep: mx.array,
    erase: mx.array,
    write: mx.array,
    mask: mx.array | None = None,
) -> Pair:
    """Return what ``recurrent_scan`` returns, from one launch. Its gradient is the chunk form's.

    Args:
        state (mx.array): float32 [B, H, r, r], rows value, columns key.
        q, k, v, keep, erase, write (mx.array): [B, T, H, r], any float dtype.
        mask (mx.array, optional): bool [B, T]; a False token reads 0 and writes nothing.

    Returns:
        tuple[mx.array, mx.array]: float32 reads [B, T, H, r] and state [B, H, r, r].
    """
    scan = _differentiable(
        lambda *inputs: _launch_scan(mask, *inputs), partial(chunk_scan, mask=mask)
    )
    return scan(state, q, k, v, keep, erase, write)


@cache
def metal_step(spec: ScanSpec, dtype: mx.Dtype = mx.float32) -> DecodeStep:
    """Return the function that does what ``compiled_step``'s does, from one launch.

    The reads are of ``dtype``: what a model adds them to needs no launch to convert them.
    """

    portable = compiled_step(spec)

    def launch(writes: mx.array | None, state: mx.array, projected: mx.array) -> list[mx.array]:
        B = state.shape[0]
        reads, new = _launch_short(spec, writes, dtype, state, projected.reshape(B, 1, -1))
        return [reads.reshape(1, B, -1), new]

    all_write = _differentiable(partial(launch, None), portable)

    def step(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        if writes is None:
            return all_write(state, projected)
        run = _differentiable(partial(launch, writes), partial(portable, writes=writes))
        return run(state, projected)

    return step  # a function of our own: a model that holds it can be copied


@cache
def metal_short(spec: ScanSpec, dtype: mx.Dtype = mx.float32) -> Short:
    """Return the function that does what ``compiled_short``'s does, from one launch.

    The reads are of ``dtype``.
    """

    def short(state: mx.array, projected: mx.array, writes: mx.array | None) -> Pair:
        launch = partial(_launch_short, spec, writes, dtype)
        run = _differentiable(launch, partial(_walk, spec, writes))
        return run(state, projected)

    return short


def _walk(spec: ScanSpec, writes: mx.array | None, state: mx.array, projected: mx.array) -> Pair:
    tokens = activate(projected, spec)
    if writes is not None:
        tokens = tokens.held(writes)
    reads, state = chunk_scan(state, *tokens)
    return reads.flatten(-2), state


def _differentiable(
    launch: Callable[..., list[mx.array]], portable: Callable[..., Pair]
) -> Callable[..., Pair]:
    """The kernel's results with the gradient of a form that has one."""

    def run(*inputs: mx.array) -> Pair:
        reads, state = launch(*inputs)
        return reads, state

    def gradient(primals: Arrays, cotangents: Arrays, _: Arrays) -> Arrays:
        exact = [cotangent.astype(mx.float32) for cotangent in cotangents]
        return tuple(mx.vjp(portable, [*primals], exact)[1])

    return with_gradient(run, gradient)


def _launch_scan(
    mask: mx.array | None, state: mx.array, q: mx.array, *rest: mx.array
) -> list[mx.array]:
    _, T, heads, rank = q.shape
    template: list[Constant] = [
        ("R", rank),
        ("H", heads),
        ("MASKED", mask is not None),
    ]
    is_real = mx.array([True]) if mask is None else mask
    inputs: list[mx.array | int] = [state, q, *rest, is_real, T]
    return _launch(_kernels()[0], inputs, template, mx.float32, q.shape, state.shape)


def _launch_short(
    spec: ScanSpec,
    writes: mx.array | None,
    dtype: mx.Dtype,
    state: mx.array,
    projected: mx.array,
) -> list[mx.array]:
    template: list[Constant] = [
        ("R", spec.rank),
        ("H", spec.heads),
        ("J", spec.entries),
        ("NORMALIZE", spec.normalize_qk),
        ("NO_LAMBDA", spec.state_update_mode == "no_lambda"),
        ("LAMBDA_OUTSIDE", spec.state_update_mode == "lambda_outside"),
        ("MASKED", writes is not None),
        ("READS", dtype),
    ]
    B, T, _ = projected.shape
    all_write = mx.array([True]) if writes is None else writes
    inputs: list[mx.array | int] = [state, projected, all_write, T]
    return _launch(_kernels()[1], inputs, template, dtype, (B, T, spec.read_width), state.shape)


def _launch(
    kernel: Kernel,
    inputs: Sequence[mx.array | int],
    template: Sequence[Constant],
    dtype: mx.Dtype,
    *shapes: tuple[int, ...],
) -> list[mx.array]:
    rows = math.prod(shapes[1][:3])
    return kernel(
        inputs=inputs,
        template=template,
        grid=(rows, 1, 1),
        threadgroup=(min(rows, 32), 1, 1),
        output_shapes=list(shapes),
        output_dtypes=[dtype, mx.float32],
    )
