"""tanh and sigmoid for many values: on a CPU in MLX's vector operations, as its own are scalar."""

import mlx.core as mx

from .seams import with_gradient

FEW = 4096  # values, up to which MLX's one operation beats these many
FEW_FUSED = 1024  # the same within a compiled function, where these are two kernels
SATURATED = 9.0  # from here on tanh is 1 in float32


def tanh(x: mx.array) -> mx.array:
    """Return tanh of float32 values, to 3e-7 of each (MLX's own is exact to 2e-7)."""
    if _suits_mlx(x):
        return mx.tanh(x)
    return _tanh(x)


def sigmoid(x: mx.array) -> mx.array:
    """Return the sigmoid of float32 values, to 2e-7, never outside 0 to 1."""
    if _suits_mlx(x):
        return mx.sigmoid(x)
    return 0.5 * _tanh(0.5 * x) + 0.5


def _suits_mlx(x: mx.array, few: int = FEW) -> bool:
    return x.size <= few or mx.default_device().type != mx.DeviceType.cpu


def fusable_tanh(x: mx.array) -> mx.array:
    """Return what ``tanh`` does, for a compiled function: without its gradient."""
    return mx.tanh(x) if _suits_mlx(x, FEW_FUSED) else _lambert(x)


def _lambert(x: mx.array) -> mx.array:
    # Lambert's continued fraction at x / 4, then tanh 2a = 2 tanh a / (1 + tanh^2 a) twice.
    a = 0.25 * mx.clip(x, -SATURATED, SATURATED)
    s = a * a
    t = a * ((s + 105.0) * s + 945.0) / ((15.0 * s + 420.0) * s + 945.0)
    for _ in range(2):
        t = (t + t) / (t * t + 1.0)
    return t


def _slope(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:
    return cotangent * (1.0 - output * output)


_tanh = with_gradient(mx.compile(_lambert), _slope)
