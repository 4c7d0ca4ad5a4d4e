"""An adapter in closed form: what is told can be found and said again from the start.

Which layers have a memory, and how strongly they say what they hold, is what loses least on
held-out conversations.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...model.patch import attach, detach, memory_layers
from .directions import Directions, head_rows
from .fitting import Weights, finished, fit
from .layers import RANK, able_layers, attentions, config_for, upper
from .recording import FactScript, record

BYTES = 1 << 30  # of recorded attention inputs at a time
SHARES = (1 / 2, 0.4, 2 / 3)  # upper layers that get a memory; gains are tried with the first
GAINS = (0.4, 0.2)  # of a word that is read, beside the hidden states before the head
FURTHER = 5  # gains in the direction of the better of these, at most


class Tried(NamedTuple):
    """An adapter that was looked at.

    Attributes:
        layers (tuple[int, ...]): With a memory.
        gain (float): How strongly words are said.
        loss (float): On what is held out.
    """

    layers: tuple[int, ...]
    gain: float
    loss: float


def fitted(
    model: nn.Module, said: FactScript, spoken: Sequence[int], tell: Callable[[int], None]
) -> tuple[dict[int, Weights], Directions, float]:
    """The weights of all layers that can have a memory, from what they see of a script.

    Args:
        model (nn.Module): Without a memory.
        said (FactScript): Facts that are told and asked for.
        spoken (Sequence[int]): Words of the vocabulary.
        tell (Callable[[int], None]): Told how many more layers are done.

    Returns:
        The weights by layer, words as directions, and the size of hidden states before the head.
    """
    tokens = [*spoken, *sorted({pair.token for pair in said.pairs} - {*spoken})]
    place = {token: i for i, token in enumerate(tokens)}
    directions = Directions(head_rows(model, tokens), len(spoken))
    values = directions.coordinates[[place[pair.token] for pair in said.pairs]]
    sites = attentions(model)
    layers, weights, size = able_layers(model), {}, 1.0
    several = max(1, BYTES // (2 * sum(map(len, said.parts)) * values.shape[1]))
    for first in range(0, len(layers), several):
        here = layers[first : first + several]
        recording = record(model, said, {i: sites[i] for i in here})
        size = recording.size
        for layer in here:
            inputs = recording.inputs[layer].astype(np.float32)
            rank = min(RANK, inputs.shape[1] // 4)
            weights[layer] = fit(inputs, recording.written, recording.pairs, values, rank)
            weights[layer]["voice"] = np.array(recording.voices[layer])
            tell(1)
    return weights, directions, size


def put(
    model: nn.Module,
    layers: Sequence[int],
    weights: Mapping[int, Weights],
    directions: Directions,
    gain: float,
) -> None:
    """Attach an adapter that has fitted weights in some layers."""
    rank = len(weights[layers[0]]["memory_k_proj"])
    attach(model, config_for(layers, rank), seed=0)
    for i, (layer, attention) in enumerate(memory_layers(model).items()):
        axes = directions.own_axes(i, len(layers), rank)
        for name, value in finished(weights[layer], directions, axes, gain).items():
            attention[name] = mx.array(value, mx.float32)


def best_start(
    model: nn.Module,
    weights: Mapping[int, Weights],
    directions: Directions,
    size: float,
    loss: Callable[[], float],
) -> list[Tried]:
    """Attach the best of several starts; returns all, the best one first.

    Args:
        model (nn.Module): Without a memory; has the best one afterwards.
        weights, directions, size: From `fitted`.
        loss (Callable[[], float]): The loss of the adapter that is attached.
    """
    tried: list[Tried] = []

    def look(layers: tuple[int, ...], gain: float) -> None:
        put(model, layers, weights, directions, gain)
        tried.append(Tried(layers, gain, loss()))
        detach(model)

    for layers, gain in _candidates(model, size, tried):
        look(layers, gain)
    tried.sort(key=lambda one: one.loss)
    put(model, tried[0].layers, weights, directions, tried[0].gain)
    return tried


def _candidates(
    model: nn.Module, size: float, tried: Sequence[Tried]
) -> Iterator[tuple[tuple[int, ...], float]]:
    """Gains in the upper half, as long as they get better; then other layers with the best."""
    first, *others = dict.fromkeys(upper(model, share) for share in SHARES)
    for gain in GAINS:
        yield first, gain * size
    best = min(tried, key=lambda one: one.loss)
    factor = 0.5 if best is tried[1] else 2.0
    for _ in range(FURTHER):
        yield first, factor * best.gain
        if tried[-1].loss >= best.loss:
            break
        best = tried[-1]
    for layers in others:
        yield layers, best.gain
