"""One training update, and the memory it takes, beside mlx-lm's LoRA on the same conversation."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.tuner.trainer import default_loss
from mlx_lm.tuner.utils import linear_to_lora_layers

from ..model.parameters import scalar
from ..training.batching import EpisodeBatch, pad_batch
from ..training.episodes import View, WritePart
from ..training.read_parts import UNSUPERVISED, ReadPart
from ..training.settings import TrainSettings
from ..training.update import updater_of
from .generation import vocabulary, with_peak
from .models import Pair, twin
from .timing import Effort, Samples, alternate

READ, LEARNED = 64, 32  # tokens that are visible, and those of the reply among them
LORA = {"rank": 8, "scale": 20.0, "dropout": 0.0}  # mlx_lm.lora's own settings
LORA_LAYERS, LORA_RATE = 16, 1e-5
WAYS = ("mlx_lm.lora", "train", "train, checkpoints")


@dataclass(frozen=True)
class TrainingRow:
    """Updates on one conversation.

    Args:
        strategy (str): TSW, MSW or SSW.
        written (int): Tokens of its history; ``READ`` more are visible.
        seconds (dict[str, Samples]): An update, by one of ``WAYS``.
        peak (dict[str, int]): Bytes that it takes above the weights.
    """

    strategy: str
    written: int
    seconds: dict[str, Samples]
    peak: dict[str, int]

    @property
    def tokens(self) -> int:
        """All that an update reads and writes."""
        return self.written + READ

    def ratio(self, way: str) -> Samples:
        """Time over that of LoRA, round by round."""
        return self.seconds[way].over(self.seconds[WAYS[0]])

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        ways = {
            way: {
                "tokens_per_second": self.tokens / seconds.median,
                "seconds": seconds.to_dict(),
                "peak_bytes": self.peak[way],
                "ratio": self.ratio(way).to_dict(),
            }
            for way, seconds in self.seconds.items()
        }
        return {"strategy": self.strategy, "written": self.written, "ways": ways}


def training_rows(pair: Pair, written: int, effort: Effort) -> list[TrainingRow]:
    """Updates on a conversation with ``written`` tokens of history, per strategy.

    LoRA sees history and visible part as one text, and learns the same reply.
    """
    batch = conversation(vocabulary(pair.plain), written)
    lora = lora_update(pair.plain, batch)
    rows = []
    for strategy, patched in pair.patched.items():
        plain = partial(memory_update, twin(patched), batch, checkpoints=False)
        spared = partial(memory_update, twin(patched), batch, checkpoints=True)
        ways = dict(zip(WAYS, (lora, plain(), spared()), strict=True))
        peaks: dict[str, list[int]] = {way: [] for way in ways}

        def run(
            way: str,
            work: Callable[[], object],
            peaks: dict[str, list[int]] = peaks,
        ) -> float:
            seconds, peak = with_peak(partial(effort.time, work))
            peaks[way].append(peak)
            return seconds

        seconds = alternate({way: partial(run, way, work) for way, work in ways.items()}, effort)
        peak = {way: int(median(taken)) for way, taken in peaks.items()}
        rows.append(TrainingRow(strategy, written, seconds, peak))
    return rows


def conversation(words: int, written: int) -> EpisodeBatch:
    """An episode of random tokens below ``words``, one message written, the last tokens learned."""
    draw = np.random.default_rng(0).integers(0, words, written + READ).astype(np.int32)
    history, visible = draw[:written], draw[written:]
    labels = np.where(np.arange(READ) < READ - LEARNED, UNSUPERVISED, visible).astype(np.int32)
    ids = np.zeros(written, np.int32)
    return pad_batch([View(WritePart(history, ids, ids), ReadPart(visible, labels))])


def memory_update(
    patched: nn.Module, batch: EpisodeBatch, *, checkpoints: bool
) -> Callable[[], object]:
    """An update of `train`, to be called again and again."""
    settings = replace(TrainSettings(), grad_checkpoint=checkpoints)
    updater = updater_of(patched, settings)
    return lambda: updater.update([batch], 0)


def lora_update(plain: nn.Module, batch: EpisodeBatch) -> Callable[[], float]:
    """An update of mlx_lm.lora with its own settings, compiled as its trainer does: the loss."""
    model = twin(plain)
    model.freeze()
    linear_to_lora_layers(model, min(LORA_LAYERS, len(model.layers)), LORA)
    model.train()
    optimizer = optim.Adam(learning_rate=LORA_RATE)
    gradients = nn.value_and_grad(model, default_loss)
    tokens = mx.array(np.concatenate([batch.write_tokens, batch.read_tokens], axis=1))
    end = tokens.shape[1]
    lengths = mx.array([[end - LEARNED, end - 1]])
    state = [model.state, optimizer.state, mx.random.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step() -> mx.array:
        (loss, _), gradient = gradients(model, tokens, lengths)
        optimizer.update(model, gradient)
        return loss

    def update() -> float:
        loss = step()
        mx.eval(loss, state)
        return scalar(loss)

    return update
