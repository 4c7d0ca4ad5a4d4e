"""How the rows of a packed projection are laid out, found out by trying.

Nothing in a weight's shape tells q rows from k rows. What reaches the keys, and what the values,
does: the attention is run on one token with some of the rows shifted, and its KV cache looked at.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.seams import split
from .projections import Projections, view_of

Run = Callable[[nn.Module, object], None]  # of a view of the attention and a KV cache


class Shifted:
    """A projection with a constant added to its output.

    Args:
        projection (nn.Module): The base projection.
        shift (mx.array): [rows].
    """

    def __init__(self, projection: nn.Module, shift: mx.array):
        self.projection, self.shift = projection, shift

    def __call__(self, x: mx.array) -> mx.array | list[mx.array]:
        y = self.projection(x)
        if isinstance(y, mx.array):
            return y + self.shift.astype(y.dtype)
        cuts = np.cumsum([part.shape[-1] for part in y])[:-1].tolist()
        shifts = split(self.shift, cuts)
        return [part + shift.astype(part.dtype) for part, shift in zip(y, shifts, strict=True)]

    def __getattr__(self, name: str) -> object:
        return getattr(self.projection, name)


def find_layout(
    attention: nn.Module, projections: Projections, cache: object, run: Run
) -> Projections | None:
    """``projections`` with the number of groups that its packed rows lie in; None: in no known way.

    Args:
        attention (nn.Module): Its packed projection is asked about.
        projections (Projections): What the names told.
        cache (object): An empty KV cache of the attention; it stays empty.
        run (Run): Calls the attention's own forward on one token.
    """
    rows = sum(projections.width(head) for head in "qkv")
    plain = _kept(attention, projections, cache, run, mx.zeros((rows,)))
    if plain is None:
        return None
    for groups in counts(attention, projections):
        tried = replace(projections, groups=groups)
        if all(
            _reach(plain, _kept(attention, tried, cache, run, shift)) == expected
            for shift, expected in _trials(tried)
        ):
            return tried
    return None


def counts(attention: nn.Module, projections: Projections) -> tuple[int, ...]:
    """Numbers of groups that there may be: one, or one that the attention counts something by."""
    counted = {n for n in vars(attention).values() if type(n) is int and n > 1}
    widths = [projections.width(head) for head in "qkv"]
    return 1, *sorted(n for n in counted if all(width % n == 0 for width in widths))


def _trials(projections: Projections) -> Iterator[tuple[mx.array, tuple[bool, bool]]]:
    """Shifts of one head's rows, and whether they then reach the keys and the values."""
    widths = {head: projections.width(head) for head in "qkv"}
    for head, reached in {"q": (False, False), "k": (True, False), "v": (False, True)}.items():
        parts = {h: mx.full((width,), float(h == head)) for h, width in widths.items()}
        yield projections.join(parts), reached


Kept = Mapping[str, list[np.ndarray]]


def _kept(
    attention: nn.Module, projections: Projections, cache: object, run: Run, shift: mx.array
) -> Kept | None:
    """Keys and values in the cache after a run with shifted rows; None: there are none."""
    view, used = view_of(attention), copy.deepcopy(cache)
    packed = projections.packed or ""
    vars(view)[packed] = Shifted(attention[packed], shift)
    run(view, used)
    found = list(_keys_and_values(used))
    if not found:
        return None
    parts = zip(*found, strict=True)
    return {
        name: [np.array(part.astype(mx.float32)) for part in arrays]
        for name, arrays in zip(("keys", "values"), parts, strict=True)
    }


def _keys_and_values(cache: object) -> Iterator[tuple[mx.array, mx.array]]:
    for part in getattr(cache, "caches", [cache]):
        keys, values = getattr(part, "keys", None), getattr(part, "values", None)
        if isinstance(keys, mx.array) and isinstance(values, mx.array):
            yield keys, values


def _reach(plain: Kept, shifted: Kept | None) -> tuple[bool, bool] | None:
    """Whether keys and values differ."""
    if shifted is None:
        return None
    keys, values = (
        any(not np.array_equal(a, b) for a, b in zip(plain[name], shifted[name], strict=True))
        for name in ("keys", "values")
    )
    return keys, values
