"""Which of several adapters is best: the one with the lowest loss on held-out conversations."""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from ..episodes import Episode
from ..objective import Objective
from ..settings import TrainSettings
from ..update import Updater
from ..validation import evaluate


def held_out_loss(model: nn.Module, episodes: Sequence[Episode], settings: TrainSettings) -> float:
    """The objective of a training on episodes that it does not see.

    Args:
        model (nn.Module): With an adapter.
        episodes (Sequence[Episode]): Held out.
        settings (TrainSettings): Of the training.
    """
    objective = Objective(model, settings.write_visible, settings.count_alike)
    updater = Updater(objective, settings, mx.distributed.init())
    return evaluate(updater, episodes).loss
