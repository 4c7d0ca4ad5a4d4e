"""The decode step of one token in as few primitives as can be: nine, once compiled."""

import functools
from collections.abc import Callable
from typing import Protocol

import mlx.core as mx

from .seams import split
from .spec import NORM_FLOOR, ScanSpec, coefficients
from .squash import fusable_tanh

Pair = tuple[mx.array, mx.array]


class DecodeStep(Protocol):
    """A decode step: what ``step_for`` returns."""

    def __call__(
        self, state: mx.array, projected: mx.array, writes: mx.array | None = None
    ) -> Pair: ...


@functools.cache
def compiled_step(spec: ScanSpec) -> DecodeStep:
    """Return the function that does what ``activate`` and the recurrent form do for one token.

    One product serves the read and the prediction, and hands on the other columns that the update
    needs. Where MLX cannot compile (on a CPU without a C++ compiler) it runs the same operations
    one by one.

    Args:
        spec (ScanSpec): The settings.

    Returns:
        DecodeStep: Of the states, float32 [B, H, r, r], one projected token of each conversation,
        [1, B, packed_width] of any float dtype, biases added, and bool [B, 1] that is false where
        it only reads (None: all write): the reads, float32 [1, B, M], and the states that follow.
    """
    squash, prepare, advance = parts_of_step(spec)

    def update(state: mx.array, probes: mx.array, carried: mx.array) -> Pair:
        read, new = advance(state, probes, carried)
        return read.reshape(1, -1, spec.read_width), new

    def update_some(state: mx.array, probes: mx.array, carried: mx.array, writes: mx.array) -> Pair:
        read, new = update(state, probes, carried)
        return read, mx.where(writes[..., None, None], new, state)

    squash, prepare, all_write, some_write = (
        mx.compile(part) for part in (squash, prepare, update, update_some)
    )

    def step(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        token = prepare(*squash(projected))
        if writes is None:
            return all_write(state, *token)
        return some_write(state, *token, writes)

    return step


def parts_of_step(spec: ScanSpec) -> tuple[Callable[..., Pair], ...]:
    """Three functions, cut where a fused kernel has to hand on two results: of projected tokens;
    of what it returns; and of states and that, to the reads, [..., r, 1], and the states."""
    J = spec.entries
    is_qk = mx.array([True, True] + [False] * (J - 3) + [True])
    is_v = mx.array([False, False, True] + [False] * (J - 3))
    probe = mx.array([1.0, -1.0] + [0.0] * (J - 2))

    def squash(projected: mx.array) -> Pair:
        y = projected.reshape(-1, spec.heads, spec.rank, J).astype(mx.float32)
        # The sigmoid is half a tanh, which is slow: one for each column.
        tanh = fusable_tanh(mx.where(is_qk, y, 0.5 * y))
        qk = tanh if spec.normalize_qk else y
        x = mx.where(is_qk, qk, mx.where(is_v, y, 0.5 * tanh + 0.5))
        return x, mx.square(x)

    def prepare(x: mx.array, squares: mx.array) -> Pair:
        if spec.normalize_qk:
            norm = mx.maximum(mx.sqrt(squares.sum(2, keepdims=True)), NORM_FLOOR)
            x = mx.where(is_qk, x / norm, x)
        probes = x * probe
        return probes, x - probes * probe

    def advance(state: mx.array, probes: mx.array, carried: mx.array) -> Pair:
        columns = split(mx.addmm(carried, state, probes), J, axis=-1)
        read, minus_predicted, v, *gates, k = columns
        keep, erase, write = coefficients(gates, spec)
        new = keep * state + (write * v + erase * minus_predicted) * k.swapaxes(-1, -2)
        return read, new

    return squash, prepare, advance
