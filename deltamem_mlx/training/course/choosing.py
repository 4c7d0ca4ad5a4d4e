"""Which of several adapters is best, on held-out conversations."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import mlx.nn as nn

from ..dataset import ForeignMemories
from ..episodes import Episode
from ..settings import TrainSettings
from ..update import updater_of
from ..validation import evaluate

Name = TypeVar("Name")


class HeldOut(NamedTuple):
    """What an adapter loses on held-out conversations, in nats a token.

    Attributes:
        loss (float): The objective of the training.
        own (float): The text of the replies, with what the conversation told.
        foreign (float): The same with another conversation's memory.
    """

    loss: float
    own: float
    foreign: float

    @property
    def remembered(self) -> float:
        """What is remembered, apart from what any memory brings: the form of the replies."""
        return self.foreign - self.own


class Judge:
    """What adapters of one model lose with the own memory, with another's, and with none.

    Args:
        episodes (Sequence[Episode]): Held out.
        settings (TrainSettings): Of the training.
    """

    def __init__(self, episodes: Sequence[Episode], settings: TrainSettings):
        self.episodes, self.settings = episodes, settings
        self._plain: float | None = None

    def __call__(self, model: nn.Module) -> HeldOut:
        """Of the adapter that the model has."""
        updater = updater_of(model, self.settings)
        figures = evaluate(updater, self.episodes)
        foreign = evaluate(updater, ForeignMemories(self.episodes)).ce
        return HeldOut(figures.loss, figures.ce, foreign)

    def plain(self, model: nn.Module) -> float:
        """What the text of the replies loses without a memory, whatever the adapter."""
        if self._plain is None:
            updater = updater_of(model, self.settings)
            self._plain = evaluate(updater, self.episodes, mode="no_memory").ce
        return self._plain


def least_loss(found: Mapping[Name, HeldOut], given: HeldOut, share: float) -> Name | None:
    """The one that loses least of those that remember a share of what a given one does.

    The loss alone, of which most is the form of replies and ordinary talk, would be bought with
    what is remembered. None: none of them remembers that much.
    """
    enough = {
        name: one.loss for name, one in found.items() if one.remembered >= share * given.remembered
    }
    return min(enough, key=lambda name: enough[name]) if enough else None
