"""The loss on episodes that are not trained on."""

from collections.abc import Callable, Sequence
from itertools import islice

import mlx.core as mx

from .batching import evaluation_batches
from .episodes import Episode
from .update import Figures, Updater


def evaluate(
    updater: Updater,
    episodes: Sequence[Episode],
    *,
    mode: str = "both",
    most: int = -1,
    on_batch: Callable[[int, int], None] | None = None,
) -> Figures:
    """Figures over episodes, all shown in one mode; every process does its part.

    Args:
        updater (Updater): Of the run: model, settings, processes.
        episodes (Sequence[Episode]): What to evaluate on.
        mode (str): As in `Episode.view`. Without a memory nothing is written while reading,
            either: these are the figures of the plain model.
        most (int): Batches at most; -1: all.
        on_batch (Callable[[int, int], None]): Told how many of how many batches are done.
    """
    settings, (rank, world) = updater.settings, updater.part
    share = max(1, settings.batch_size // world)
    total = -(-len(range(0, len(episodes), world)) // share)
    total = total if most == -1 else min(total, most)
    stream = evaluation_batches(
        episodes, share, mode=mode, multiple=settings.pad_multiple, rank=rank, world_size=world
    )
    updater.model.eval()
    objective = updater.objective.reading_only() if mode == "no_memory" else updater.objective
    seen = []
    for done, batch in enumerate(islice(stream, total), start=1):
        inputs = objective.inputs(batch)
        seen.append(objective.terms(inputs))
        mx.eval(seen[-1])
        if on_batch is not None:
            on_batch(done, total)
    return updater.figures(seen)
