"""Where a memory's time goes in a call: which operations, how many, how long."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..model.attention import DeltaMemAttention
from ..model.patch import memory_layers
from ..ops import activate, delta_scan, is_short, short_for, step_for
from .generation import PLAIN, cache_at, vocabulary, writes
from .models import Pair
from .primitives import cached_arrays, primitives_of
from .timing import CLOCKS, Effort, Samples, alternate

WHOLE, GRAPH = "the whole call", "building its graph"


@dataclass(frozen=True)
class ProfileRow:
    """A part of what a memory adds to a layer in a call.

    Args:
        strategy (str): TSW, MSW or SSW.
        batch_size (int): Conversations B.
        tokens (int): Of the call, for each conversation.
        part (str): ``WHOLE`` and ``GRAPH`` are differences between patched and plain calls; the
          others are run alone, those of all layers at once, when their graph has been built.
        operations (Counter[str]): Primitives of a layer, by name; empty for differences.
        seconds (Samples): Of a layer.
        plain (float): A layer's share of the plain model's call, in seconds.
    """

    strategy: str
    batch_size: int
    tokens: int
    part: str
    operations: Counter[str]
    seconds: Samples
    plain: float

    @property
    def share(self) -> float:
        """Of the plain model's time."""
        return self.seconds.median / self.plain

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            **{name: getattr(self, name) for name in ("strategy", "batch_size", "tokens", "part")},
            "operations": dict(self.operations.most_common()),
            "seconds": self.seconds.to_dict(),
            "share_of_plain": self.share,
        }


def profile_rows(
    pair: Pair, batch_size: int, tokens: int, effort: Effort, cached: int
) -> list[ProfileRow]:
    """What a call of ``tokens`` tokens behind ``cached`` ones spends on a memory, per strategy."""
    call = mx.random.randint(0, vocabulary(pair.plain), (batch_size, tokens))
    mx.eval(call)
    models = {PLAIN: pair.plain, **pair.patched}
    warm = {name: cache_at(model, batch_size, max(cached, 1)) for name, model in models.items()}
    graphs: dict[str, list[float]] = {name: [] for name in models}

    def run(name: str) -> float:
        building, running = _timed(models[name], call, deepcopy(warm[name]), effort)
        graphs[name].append(building)
        return building + running

    whole = alternate({name: partial(run, name) for name in models}, effort)
    built = {name: Samples(tuple(taken[1:])) for name, taken in graphs.items()}  # of those rounds
    rows = []
    for strategy, model in pair.patched.items():
        layers = list(memory_layers(model).values())
        n = len(layers)
        row = partial(ProfileRow, strategy, batch_size, tokens)
        plain = whole[PLAIN].median / n
        for part, found in ((WHOLE, whole), (GRAPH, built)):
            both = zip(found[strategy].values, found[PLAIN].values, strict=True)
            added = Samples(tuple((patched - base) / n for patched, base in both))
            rows.append(row(part, Counter(), added, plain))
        works = {"projections": _project, "memory": _remember, "corrections": _correct}
        runs = {
            part: partial(_alone, partial(work, batch_size, tokens), layers, effort)
            for part, work in works.items()
        }
        for part, seconds in alternate(runs, effort).items():
            count = primitives_of(*works[part](batch_size, tokens, layers[0]))
            rows.append(row(part, count, seconds, plain))
    return rows


def _timed(model: nn.Module, call: mx.array, cache: list, effort: Effort) -> tuple[float, float]:
    """Seconds until the graph of a call was built, and from there until it has run."""
    mx.eval(cached_arrays(cache))
    mx.synchronize()
    now = CLOCKS[effort.clock]
    with writes(model, cache, call.shape):
        start = now()
        found = model(call, cache=cache), [entry.state for entry in cache]
        built = now()
        mx.eval(found)
        mx.synchronize()
        return built - start, now() - built


def _alone(
    work: Callable[[DeltaMemAttention], list[mx.array]],
    layers: list[DeltaMemAttention],
    effort: Effort,
) -> float:
    """Seconds a layer."""
    found = [work(layer) for layer in layers]
    return effort.time(lambda: mx.eval(found)) / len(layers)


def _project(batch_size: int, tokens: int, layer: DeltaMemAttention) -> list[mx.array]:
    width, dims = layer.memory_spec.packed_width, layer.memory_projections.dims
    bias, x, weight = _arrays((1, 1, width), (1, batch_size * tokens, dims), (1, dims, width))
    return [mx.addmm(bias, x, weight)]


def _remember(batch_size: int, tokens: int, layer: DeltaMemAttention) -> list[mx.array]:
    spec = layer.memory_spec
    calls = (batch_size, tokens) if tokens > 1 else (1, batch_size)
    shapes = (batch_size, spec.heads, spec.rank, spec.rank), (*calls, spec.packed_width)
    state, projected = _arrays(*shapes)
    if tokens == 1:
        return list(step_for(spec)(state, projected))
    short = short_for(spec)
    if short is None or not is_short(spec, batch_size, tokens):
        return list(delta_scan(state, *activate(projected, spec)))
    return list(short(state, projected, None))


def _correct(batch_size: int, tokens: int, layer: DeltaMemAttention) -> list[mx.array]:
    found = []
    for head in layer.memory_config.delta_heads:
        n, M = batch_size * tokens, layer.memory_spec.read_width
        width = layer.memory_projections.width(head)
        y, reads, weight = _arrays((1, n, width), (1, n, M), (1, M, width))
        found.append(mx.addmm(y, reads, weight))
    return found


def _arrays(*shapes: tuple[int, ...]) -> list[mx.array]:
    """Random float32 arrays of their own."""
    found = [mx.random.normal(shape) for shape in shapes]
    mx.eval(found)
    return found
