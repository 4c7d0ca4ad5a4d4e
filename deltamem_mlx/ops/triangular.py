"""The triangular form: what few tokens write follows from one triangular system a state row.

README.md beside this file derives it. A call of 2 to 512 tokens is what chats and verified drafts
are made of, and there not the arithmetic costs but every operation that is started: here they are
few, and as many whatever the tokens.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx

from .seams import split, with_gradient
from .spec import NORM_FLOOR, ScanSpec, coefficients
from .squash import fusable_tanh
from .step import parts_of_step

Pair = tuple[mx.array, mx.array]
Short = Callable[[mx.array, mx.array, mx.array | None], Pair]

ALWAYS, MOST_TOKENS, MOST_READS = 128, 512, 1 << 13  # what is short, see ``is_short``
STEPS = 4  # tokens, up to which one after the other is faster
BLOCK = 16  # tokens, at most, of each of several blocks; half of it where there are more rows than
FEW_ROWS = 16  # these, as a block's tables of decays are the costlier then
LONGEST, FLOATS = 32, 1 << 14  # tokens and decays of a single block, up to which there is but one


def is_short(spec: ScanSpec, batch_size: int, tokens: int) -> bool:
    """Whether a call of so many tokens a conversation is faster so than in the chunk form."""
    reads = batch_size * tokens * spec.read_width
    return tokens <= ALWAYS or (tokens <= MOST_TOKENS and reads <= MOST_READS)


@functools.cache
def compiled_short(spec: ScanSpec) -> Short:
    """Return the function that does what ``activate`` and ``delta_scan`` do for a short call.

    A handful of tokens are steps, few are one block, more are many blocks at once and what is left
    over. Where MLX cannot compile (on a CPU without a C++ compiler) it runs the same operations
    one by one.

    Args:
        spec (ScanSpec): The settings.

    Returns:
        Short: Of the states, float32 [B, H, r, r], projected tokens [B, T, packed_width] of any
        float dtype, biases added, and bool [B, T] that is false for tokens that only read (None:
        all write): the reads, float32 [B, T, r·H], and the states that follow.
    """
    steps, one, many = (
        _for_writes(mx.compile(form(spec)), mx.compile(form(spec)))
        for form in (_steps, _block, _blocks)
    )

    def short(state: mx.array, projected: mx.array, writes: mx.array | None) -> Pair:
        B, T, _ = projected.shape
        if T <= STEPS:
            return steps(state, projected, writes)
        if T <= BLOCK or (T <= LONGEST and B * spec.read_width * T**2 <= FLOATS):
            return one(state, projected, writes)
        left = T % _block_of(T, B * spec.read_width)
        if not left:
            return many(state, projected, writes)
        early, late = (None, None) if writes is None else split(writes, [T - left], axis=1)
        first, last = split(projected, [T - left], axis=1)
        reads, state = many(state, first, early)
        more, state = one(state, last, late)
        return mx.concatenate([reads, more], axis=1), state

    return short


@functools.cache
def _block_of(T: int, rows: int) -> int:
    """Tokens of each of the blocks of T tokens, so that none are left over if that can be."""
    most = BLOCK if rows <= FEW_ROWS else BLOCK // 2
    return next((size for size in range(most, most // 2, -1) if T % size == 0), most)


def _for_writes(all_write: Callable[..., Pair], some_write: Callable[..., Pair]) -> Short:
    def run(state: mx.array, projected: mx.array, writes: mx.array | None) -> Pair:
        if writes is None:
            return all_write(state, projected)
        return some_write(state, projected, writes)

    return run


def _steps(spec: ScanSpec) -> Callable[..., Pair]:
    """Reads and the state after a handful of tokens, one after the other."""
    squash, prepare, advance = parts_of_step(spec)

    def steps(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        B, T, _ = projected.shape
        of_tokens = B, T, spec.heads, spec.rank, spec.entries
        tokens = [
            split(x.reshape(of_tokens), T, axis=1) for x in prepare(*squash(projected))
        ]  # [B, 1, H, r, J] each
        now, reads = state[:, None], []
        for t, (probes, carried) in enumerate(zip(*tokens, strict=True)):
            read, new = advance(now, probes, carried)
            if writes is not None:
                new = mx.where(writes[:, t].reshape(B, 1, 1, 1, 1), new, now)
            reads.append(read)
            now = new
        return mx.concatenate(reads, axis=1).reshape(B, T, spec.read_width), now.squeeze(1)

    return steps


class _Solved(NamedTuple):
    """What follows from the projections of blocks of T tokens, whatever the state before them.

    Args:
        across (mx.array): Queries and keys, a token's side by side, [B, H, r, 2 T].
        keys (mx.array): The keys, [B, H, T, r].
        from_start (mx.array): What is left of the state at each token, [B, H, r, T, 1].
        old, new (mx.array): What is left at the end of the state, [B, H, r, 1], and of each
          token's change, [B, H, r, T].
        erase, written (mx.array): The gate, and what is added along the key, [B, H, r, T, 1].
        inverse (mx.array): Of the system, [B, H, r, T, T].
        weights (mx.array): Of the changes in each read, [B, H, r, T, T].
    """

    across: mx.array
    keys: mx.array
    from_start: mx.array
    old: mx.array
    new: mx.array
    erase: mx.array
    written: mx.array
    inverse: mx.array
    weights: mx.array


def _solver(spec: ScanSpec) -> Callable[..., _Solved]:
    J = spec.entries
    is_qk = mx.array([True, True] + [False] * (J - 2))
    is_v = mx.array([False, False, True] + [False] * (J - 3))
    slope = mx.array([1.0, 1.0] + [0.5] * (J - 2))  # a constant: any thread may be the first

    def solve(projected: mx.array, writes: mx.array | None) -> _Solved:
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
        across = qk.flatten(-2)
        along = across.swapaxes(-1, -2)
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
        # Of all pairs those with a key: the product of the two as they lie needs no copy.
        pairs = mx.unflatten(along @ across, 2, (T, 2))[..., 1::2]
        read_alike, alike = split(pairs.swapaxes(2, 3), 2, axis=2)  # to k: [B, H, 1, T, T]
        inverse = _inverse(one + erase * lower * decay * alike)
        to_end = decays[..., -1:, :] * kept[..., -1:, :]
        old, new = split(to_end.squeeze(-2), [1], axis=-1)
        weights = lower * decay * read_alike
        keys = along[..., 1::2, :]
        return _Solved(across, keys, from_start, old, new, erase, write * v, inverse, weights)

    return solve


def _block(spec: ScanSpec) -> Callable[..., Pair]:
    """Reads and the state after one block."""
    solve = _solver(spec)

    def block(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        B, T, _ = projected.shape
        x = solve(projected, writes)
        read, found = split(mx.unflatten(state @ x.across, -1, (T, 2)), 2, axis=-1)
        changes = x.inverse @ (x.written - x.erase * x.from_start * found)
        read = x.from_start * read + x.weights @ changes
        new = mx.addmm(x.old * state, x.new * changes.squeeze(-1), x.keys)
        return read.transpose(0, 3, 1, 2, 4).reshape(B, T, spec.read_width), new

    return block


def _blocks(spec: ScanSpec) -> Callable[..., Pair]:
    """Reads and the state after several blocks.

    All that a block does is affine in each row of the state before it. So all blocks are solved at
    once for the r unit rows with nothing written, and for zero with the writes; their rows are then
    found one after the other.
    """
    solve, r = _solver(spec), spec.rank
    nothing_written = mx.array([True] * r + [False])
    unit = mx.eye(r + 1, r)
    mx.eval(unit)  # any thread may be the first

    def blocks(state: mx.array, projected: mx.array, writes: mx.array | None = None) -> Pair:
        B, T, _ = projected.shape
        C = _block_of(T, B * spec.read_width)
        N = T // C
        held = None if writes is None else writes.reshape(B * N, C)
        x = solve(projected.reshape(B * N, C, -1), held)
        k = x.keys[:, :, None]
        wide = mx.pad(k, [(0, 0)] * 4 + [(0, 1)])
        given = mx.where(nothing_written, -x.erase * x.from_start * wide, x.written)
        changes = x.inverse @ given  # [B N, H, r, C, r + 1]
        after = mx.addmm(x.old[..., None] * unit, changes.swapaxes(-1, -2), x.new[..., None] * k)
        after = after.reshape(B, N, spec.heads, r, r + 1, r)
        maps, offsets = (split(part, N, axis=1) for part in split(after, [r], axis=-2))
        row, rows = state[:, None, :, :, None], []
        for step, offset in zip(maps, offsets, strict=True):
            rows.append(row)
            row = mx.addmm(offset, row, step)
        before = mx.concatenate(rows, axis=1).reshape(B * N, spec.heads, r, 1, r)
        found = (before.squeeze(3) @ x.across)[..., ::2, None]  # [B N, H, r, C, 1]
        starts = mx.pad(before, [(0, 0)] * 4 + [(0, 1)], constant_values=1.0)
        changes = (changes * starts).sum(-1, keepdims=True)
        reads = mx.addmm(x.from_start * found, x.weights, changes)
        reads = reads.reshape(B, N, spec.heads, r, C).transpose(0, 1, 4, 2, 3)
        reads = reads.reshape(B, T, spec.read_width)
        return reads, row.reshape(state.shape)

    return blocks


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
