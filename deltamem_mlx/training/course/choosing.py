"""Which of several adapters is best, on held-out conversations."""

from collections.abc import Sequence
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn

from ..dataset import ForeignMemories
from ..episodes import Episode
from ..objective import Objective
from ..settings import TrainSettings
from ..update import Updater
from ..validation import evaluate


class HeldOut(NamedTuple):
    """What an adapter loses on held-out conversations, in nats a token.

    Attributes:
        own (float): With what the conversation told.
        empty (float): With an empty memory.
        foreign (float): With another conversation's.
    """

    own: float
    empty: float
    foreign: float

    @property
    def remembered(self) -> float:
        """What is remembered, apart from what any memory brings: the form of the replies."""
        return self.foreign - self.own


def held_out_loss(model: nn.Module, episodes: Sequence[Episode], settings: TrainSettings) -> float:
    """The objective of a training on episodes that it does not see.

    Args:
        model (nn.Module): With an adapter.
        episodes (Sequence[Episode]): Held out.
        settings (TrainSettings): Of the training.
    """
    return evaluate(_updater(model, settings), episodes).loss


class Judge:
    """What adapters lose with the own memory, with none, and with another's.

    Args:
        episodes (Sequence[Episode]): Held out.
        settings (TrainSettings): Of the training.
    """

    def __init__(self, episodes: Sequence[Episode], settings: TrainSettings):
        self.episodes, self.settings = episodes, settings
        self.empty: float | None = None  # reading an empty memory changes nothing

    def __call__(self, model: nn.Module) -> HeldOut:
        """Of the adapter that a model has; all are judged on one model."""
        updater = _updater(model, self.settings)
        if self.empty is None:
            self.empty = evaluate(updater, self.episodes, mode="no_memory").ce
        own = evaluate(updater, self.episodes).ce
        return HeldOut(own, self.empty, evaluate(updater, ForeignMemories(self.episodes)).ce)


def _updater(model: nn.Module, settings: TrainSettings) -> Updater:
    objective = Objective(model, settings.write_visible, settings.count_alike)
    return Updater(objective, settings, mx.distributed.init())
