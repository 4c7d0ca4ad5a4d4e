"""How the rows of a projection that holds several things are laid out, found out by trying.

Nothing in a weight's shape tells q rows from k rows. What reaches the keys, and what the values,
does: the attention is run on one token with some of the rows shifted, and its KV cache looked at.
Nor does it tell queries from an output gate. A single token looks at itself alone, whatever it asks
for: the gate's rows reach what the output projection is given, those of the queries do not.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..ops.seams import split
from .projections import Projections, linear_dims, view_of

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
    if plain.keys() != {"keys", "values"}:
        return None
    for groups in counts(attention, projections):
        tried = replace(projections, groups=groups)
        if not any(
            shifted.get(name) != plain[name]
            for shift, untouched in _trials(tried)
            for shifted in [_kept(attention, tried, cache, run, shift)]
            for name in untouched
        ):
            return tried
    return None


def find_gate(
    attention: nn.Module, projections: Projections, cache: object, run: Run
) -> Projections:
    """``projections`` with the heads by which a q projection of twice the width holds a gate."""
    rows, inner = projections.width("q"), linear_dims(attention[projections.attribute("o")])[1]
    if rows != 2 * inner:
        return projections
    plain = _attended(attention, projections, cache, run, mx.zeros((rows,)))
    for heads in counts(attention, projections):
        if inner % heads:
            continue
        tried = replace(projections, gated=heads)
        queries = tried.with_gate(mx.ones((inner,)))
        same = _attended(attention, tried, cache, run, queries) == plain
        if same and _attended(attention, tried, cache, run, 1 - queries) != plain:
            return tried
    return projections


def counts(attention: nn.Module, projections: Projections) -> tuple[int, ...]:
    """Numbers of groups that there may be: one, or one that the attention counts something by."""
    counted = {n for n in vars(attention).values() if type(n) is int and n > 1}
    widths = [projections.width(head) for head in "qkv" if head in projections.heads]
    return 1, *sorted(n for n in counted if all(width % n == 0 for width in widths))


def _trials(projections: Projections) -> Iterator[tuple[mx.array, tuple[str, ...]]]:
    """Shifts of one head's rows, and what may not change by them.

    That keys change by theirs is not asked for: weights of zero may stand between.
    """
    widths = {head: projections.width(head) for head in "qkv"}
    for head, untouched in {"q": ("keys", "values"), "k": ("values",), "v": ("keys",)}.items():
        parts = {h: mx.full((width,), float(h == head)) for h, width in widths.items()}
        yield projections.join(parts), untouched


def _kept(
    attention: nn.Module, projections: Projections, cache: object, run: Run, shift: mx.array
) -> dict[str, list[bytes]]:
    """Keys and values in the cache after a run with shifted rows, bit for bit."""
    used = copy.deepcopy(cache)
    run(_shifted(attention, projections, shift), used)
    kept: dict[str, list[bytes]] = {}
    for part in getattr(used, "caches", [used]):
        for name in ("keys", "values"):
            if isinstance(array := getattr(part, name, None), mx.array):
                kept.setdefault(name, []).append(np.array(array.astype(mx.float32)).tobytes())
    return kept


def _attended(
    attention: nn.Module, projections: Projections, cache: object, run: Run, shift: mx.array
) -> list[bytes]:
    """What the output projection is given in a run with shifted rows of q, bit for bit."""
    view, output = _shifted(attention, projections, shift), projections.attribute("o")
    given: list[bytes] = []
    base = attention[output]

    def look(x: mx.array) -> mx.array:
        given.append(np.array(x.astype(mx.float32)).tobytes())
        y: mx.array = base(x)
        return y

    vars(view)[output] = look
    run(view, copy.deepcopy(cache))
    return given


def _shifted(attention: nn.Module, projections: Projections, shift: mx.array) -> nn.Module:
    """A view of the attention whose projection of q, packed or not, has a shifted output."""
    view, name = view_of(attention), projections.attribute("q")
    vars(view)[name] = Shifted(attention[name], shift)
    return view
