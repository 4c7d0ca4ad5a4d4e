"""How fast this machine is: what a plan's iterations follow from."""

import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import batch_generate

from ...model.parameters import scalar
from ...model.patch import attach, detach
from ..batching import EpisodeBatch, batches
from ..episodes import Episode
from ..objective import Objective
from ..settings import TrainSettings
from ..update import updater_of
from .layers import config_for, upper
from .rendering import ChatForm

SPOKEN, TOKENS = 8, 12  # answers at once, and their length
SOME, TIMED = 32, 4  # batches that are looked at, and those of them that are timed


class MachinePace(NamedTuple):
    """What was measured.

    Attributes:
        trained (float): Tokens a second in training, of both passes.
        judged (float): The same where only the loss is computed.
        spoken (float): Tokens a second that are generated, several answers at once.
    """

    trained: float
    judged: float
    spoken: float


def measured_pace(
    model: nn.Module,
    chat: ChatForm,
    episodes: Sequence[Episode],
    settings: TrainSettings,
    asked: Sequence[str],
) -> MachinePace:
    """Train, judge and speak a little.

    Args:
        model (nn.Module): Without a memory, as it is afterwards.
        chat (ChatForm): How its conversations are written.
        episodes (Sequence[Episode]): Of two batches at least.
        settings (TrainSettings): Of a training.
        asked (Sequence[str]): Things to answer.
    """
    prompts = [chat.prompt([{"role": "user", "content": text}]) for text in asked[:SPOKEN]]
    spoken = _rate(
        lambda: sum(
            len(chat.encode(text))
            for text in batch_generate(model, chat.tokenizer, prompts, max_tokens=TOKENS).texts
        )
    )
    attach(model, config_for(upper(model, 0.5)), seed=0)
    try:
        updater = updater_of(model, settings)
        stream = batches(episodes, settings.batch_size, seed=settings.seed)
        numbers = iter(range(100))
        trained = _rate(lambda: updater.update([next(stream)], next(numbers)).tokens)
        judged = _rate(lambda: _judged(updater.objective, next(stream)))
    finally:
        detach(model)
    mx.clear_cache()
    return MachinePace(trained, judged, spoken)


def seconds_an_iteration(
    model: nn.Module,
    episodes: Sequence[Episode],
    settings: TrainSettings,
    group: mx.distributed.Group | None = None,
) -> float:
    """How long a training takes over a batch of its own, the mean of some from short to long.

    Args:
        model (nn.Module): With an adapter, which is another one afterwards.
        episodes (Sequence[Episode]): Some of the training's.
        settings (TrainSettings): Of the training.
        group (mx.distributed.Group): All of whose processes do this; ``None``: this one alone.
    """
    updater = updater_of(model, settings, group)
    rank, size = updater.part
    stream = batches(episodes, settings.batch_size, seed=settings.seed, rank=rank, world_size=size)
    some = sorted(islice(stream, SOME), key=lambda b: b.read_tokens.size + b.write_tokens.size)
    chosen = some[SOME // TIMED // 2 :: SOME // TIMED]
    updater.update(chosen[:1], 0)  # compiles
    began = time.perf_counter()
    for number, batch in enumerate(chosen, start=1):
        updater.update([batch], number)
    return (time.perf_counter() - began) / len(chosen)


def _judged(objective: Objective, batch: EpisodeBatch) -> int:
    terms = objective.terms(objective.inputs(batch))
    mx.eval(terms)
    return round(scalar(terms.tokens + terms.written))


def _rate(work: Callable[[], float]) -> float:
    """Work a second, the better of two: something else may be at work. A first one compiles."""
    work()
    rates = []
    for _ in range(2):
        start = time.perf_counter()
        done = work()
        rates.append(max(1.0, done) / (time.perf_counter() - start))
    return max(rates)
