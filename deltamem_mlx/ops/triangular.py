"""The triangular form: what few tokens write follows from one triangular system a state row.

README.md beside this file derives it. A call of 2 to 128 tokens is what chats and verified drafts
are made of, and there not the arithmetic costs but every operation that is started: here they are
few, and as many whatever the tokens.
"""

import functools
from collections.abc import Callable

import mlx.core as mx

from .seams import split, with_gradient
from .spec import NORM_FLOOR, ScanSpec, coefficients
from .squash import fusable_tanh

Pair = tuple[mx.array, mx.array]
Short = Callable[[mx.array, mx.array, mx.array | None], Pair]

MOST_TOKENS = 128  # beyond, the chunk form is faster
FLOATS = 1 << 16  # of a block's decays, up to which blocks are as long as they may be
LONGEST, SHORTER = 32, 16


@functools.cache
def compiled_short(spec: ScanSpec) -> Short:
    """Return the function that does what ``activate`` and ``delta_scan`` do for a short call.

    Long ones are taken in blocks. Where MLX cannot compile (on a CPU without a C++ compiler) it
    runs the same operations one by one.

    Args:
        spec (ScanSpec): The settings.

    Returns:
        Short: Of the states, float32 [B, H, r, r], projected tokens [B, T, packed_width] of any
        float dtype, biases added, and bool [B, T] that is false for tokens that only read (None:
        all write): the reads, float32 [B, T, r·H], and the states that follow.
    """
    all_write, some_write = mx.compile(_block(spec)), mx.compile(_block(spec))

    def short(state: mx.array, projected: mx.array, writes: mx.array | None) -> Pair:
        B, T, _ = projected.shape
        size = LONGEST if B * spec.read_width * LONGEST**2 <= FLOATS else SHORTER
        reads = []
        for start in range(0, T, size):
            tokens = projected[:, start : start + size] if size < T else projected
            if writes is None:
                read, state = all_write(state, tokens)
            else:
                on = writes[:, start : start + size] if size < T else writes
                read, state = some_write(state, tokens, on)
            reads.append(read)
        return reads[0] if len(reads) == 1 else mx.concatenate(reads, axis=1), state

    return short


def _block(spec: ScanSpec) -> Callable[..., Pair]:
    """Reads and the state after at most ``LONGEST`` tokens."""
    J = spec.entries
    is_qk = mx.array([True, True] + [False] * (J - 2))
    is_v = mx.array([False, False, True] + [False] * (J - 3))
    slope = mx.array([1.0, 1.0] + [0.5] * (J - 2))  # a constant: any thread may be the first

    def block(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        B, T, _ = projected.shape
        y = projected.reshape(B, T, spec.heads, spec.rank, J).astype(mx.float32)
        y = y.transpose(0, 2, 3, 1, 4)  # [B, H, r, T, J]
        # The sigmoid is half a tanh: one for each column.
        tanh = fusable_tanh(slope * y)
        x = mx.where(is_qk, tanh if spec.normalize_qk else y, 0.5 * tanh + 0.5)
        x = mx.where(is_v, y, x)
        qk, v, *gates, _ = split(x, [2, *range(3, J)], axis=-1)
        if spec.normalize_qk:
            squares = mx.square(qk).sum(2, keepdims=True)
            qk = qk * mx.rsqrt(mx.maximum(squares, NORM_FLOOR**2))
        across = qk.transpose(0, 1, 4, 2, 3)  # [B, H, 2, r, T]
        along = across.swapaxes(-1, -2)
        k = along[:, :, 1:]
        keep, erase, write = coefficients(gates, spec)  # [B, H, r, T, 1], as v is
        if writes is not None:
            on = writes.reshape(B, 1, 1, T, 1)
            keep, erase, write = (
                mx.where(on, gate, held) for gate, held in ((keep, 1.0), (erase, 0.0), (write, 0.0))
            )

        grows, lower, one = _constants(T)
        kept = mx.where(grows, mx.broadcast_to(keep, v.shape), 1.0)
        decays = mx.cumprod(kept, axis=-2, inclusive=False)  # [B, H, r, T, 1 + T]
        from_start, decay = split(decays, [1], axis=-1)
        read_alike, alike = split(along @ across[:, :, 1:], 2, axis=2)  # to k: [B, H, 1, T, T]
        read, found = split((state[:, :, None] @ across).transpose(0, 1, 3, 4, 2), 2, axis=-1)
        system = one + erase * lower * decay * alike
        changes = write * v - erase * from_start * found
        changes = _inverse(system) @ changes
        read = from_start * read + (lower * decay * read_alike) @ changes
        to_end = decays[..., -1:, :] * kept[..., -1:, :]
        old, new = split(to_end.squeeze(-2), [1], axis=-1)
        new = mx.addmm(old * state, new * changes.squeeze(-1), k.squeeze(2))
        return read.transpose(0, 3, 1, 2, 4).reshape(B, T, spec.read_width), new

    return block


def _inverse_of(system: mx.array) -> mx.array:
    return mx.linalg.tri_inv(system, stream=mx.cpu)


def _slope(_: mx.array, cotangent: mx.array, inverse: mx.array) -> mx.array:
    transposed = inverse.swapaxes(-1, -2)
    return -(transposed @ cotangent @ transposed)


_inverse = with_gradient(_inverse_of, _slope)


@functools.cache
def _constants(T: int) -> tuple[mx.array, mx.array, mx.array]:
    """Which gates a decay is the product of, bool [T, 1 + T]; the strictly lower triangle and the
    identity, float32 [T, T]. Column 0 is the state before the block, 1 + s what token s wrote."""
    token, column = mx.arange(T)[:, None], mx.arange(1 + T)
    found = token >= column, mx.tri(T, T, -1), mx.eye(T)
    mx.eval(found)
    return found
