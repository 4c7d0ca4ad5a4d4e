"""An adapter in closed form: what is told can be found and said again from the start.

Which layers have a memory, and how strongly they say what they hold, is what remembers most of
held-out conversations: the loss with the own memory beside that with another's. The loss alone
would choose to say next to nothing, as the form of the replies is not learned yet; so far as to
lose more than with an empty memory it does not go.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...model.patch import attach, detach, memory_layers
from .choosing import Judge
from .directions import Directions, head_rows
from .fitting import Weights, finished, fit
from .layers import RANK, able_layers, attentions, config_for, upper, width_of
from .recording import FactScript, record

RECORDED = 1 / 6  # of the machine's memory, at most: attention inputs that are recorded at a time
SHARES = (1 / 2, 0.4, 2 / 3)  # upper layers that get a memory
GAIN = 0.4  # of a word that is read, beside the hidden states before the head: tried first
FURTHER = 8  # times that it is doubled or halved, at most


class Tried(NamedTuple):
    """An adapter that was looked at.

    Attributes:
        layers (tuple[int, ...]): With a memory.
        gain (float): How strongly words are said.
        loss (float): On what is held out.
        empty (float): The same with an empty memory.
        foreign (float): With another conversation's.
    """

    layers: tuple[int, ...]
    gain: float
    loss: float
    empty: float
    foreign: float

    @property
    def harmless(self) -> bool:
        """It loses no more than an empty memory."""
        return self.loss <= self.empty

    @property
    def worth(self) -> tuple[bool, float]:
        """More is better."""
        return self.harmless, (self.foreign if self.harmless else self.empty) - self.loss


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
    several = recorded_together(model, said.parts)
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


def recorded_together(model: nn.Module, parts: Sequence[Sequence[int]]) -> int:
    """How many layers are recorded at a time: the parts are read again for the next ones."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    layer = 2 * sum(map(len, parts)) * width_of(model)
    return max(1, int(RECORDED * there) // layer)


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
    judge: Judge,
) -> list[Tried]:
    """Attach the best of several starts; returns all, the best one first.

    Args:
        model (nn.Module): Without a memory; has the best one afterwards.
        weights, directions, size: From `fitted`.
        judge (Judge): On held-out conversations.
    """
    tried: list[Tried] = []

    def look(layers: tuple[int, ...], gain: float) -> None:
        put(model, layers, weights, directions, gain)
        found = judge(model)
        tried.append(Tried(layers, gain, found.own, judge.plain(model), found.foreign))
        detach(model)

    for layers, gain in _candidates(model, size, tried):
        look(layers, gain)
    tried.sort(key=lambda one: one.worth, reverse=True)
    put(model, tried[0].layers, weights, directions, tried[0].gain)
    return tried


def _candidates(
    model: nn.Module, size: float, tried: Sequence[Tried]
) -> Iterator[tuple[tuple[int, ...], float]]:
    """For some layers after others, gains in either direction for as long as they get better.

    Fewer layers bear more; so of each the search begins with the best gain so far.
    """
    gain = GAIN * size
    for layers in dict.fromkeys(upper(model, share) for share in SHARES):
        yield layers, gain
        best = tried[-1]
        for factor in (2.0, 0.5):
            begun = best
            for _ in range(FURTHER):
                yield layers, factor * best.gain
                if tried[-1].worth <= best.worth:
                    break
                best = tried[-1]
            if best is not begun:
                break
        best = max(tried, key=lambda one: one.worth)
        gain = best.gain if best.harmless else gain
