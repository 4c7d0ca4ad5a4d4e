"""Run by `mlx.launch`: trains an adapter of a model whose parts lie in the processes.

usage: spread_train_run.py FOLDER

Writes the gradients of one update, and the adapters of two runs.
"""

import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from distributed_run import SETTINGS, episodes
from mlx.utils import tree_flatten
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.training.batching import EpisodeBatch, batches
from deltamem_mlx.training.objective import Objective
from deltamem_mlx.training.trainer import Outcome, Trainer
from deltamem_mlx.training.update import Figures, Updater

CONFIG = dm.DeltaMemConfig(
    rank=4,
    delta_heads=("q", "k", "v", "o"),
    output_init="random",
    online_gain=1.0,
    trainable_delta_scale=True,
)


def attached(group: mx.distributed.Group, seed: int = 1) -> nn.Module:
    model = tiny_model()
    if group.size() > 1:
        model.shard(group)
    return dm.attach(model, CONFIG, seed=seed)


def first_gradients(group: mx.distributed.Group) -> tuple[dict[str, np.ndarray], Figures]:
    """Of the first batch, all of it."""
    updater = Updater(Objective(attached(group)), SETTINGS, group)
    rank, size = updater.part
    stream = batches(episodes(), 4, seed=1, rank=rank, world_size=size)
    gradients, figures = updater.gradients([next(stream)])
    return {name: np.array(g) for name, g in tree_flatten(gradients)}, figures


def train(folder: Path, group: mx.distributed.Group, **options: object) -> Outcome:
    """Four iterations; ``stop_at`` interrupts this process alone."""
    stop_at, data = options.pop("stop_at", None), episodes()
    seed = 1 + options.get("resume", 0)
    trainer = Trainer(attached(group, seed), data, data, SETTINGS, folder, **options)
    real = trainer.updater.update

    def update(parts: list[EpisodeBatch], number: int) -> Figures:
        if number == stop_at:
            trainer._interrupt()
        return real(parts, number)

    trainer.updater.update = update
    return trainer.run()


def main(folder: Path) -> None:
    mx.set_default_device(mx.cpu)
    group = mx.distributed.init(strict=True)
    last = group.rank() == group.size() - 1
    gradients, figures = first_gradients(group)
    if last:
        about = {"loss": figures.loss, "labelled": figures.labelled, "tokens": figures.tokens}
        np.savez(folder / "gradients.npz", **about, **gradients)
    train(folder / "whole", group)
    assert not train(folder / "stopped", group, stop_at=1 if last else None).finished
    # Processes on other machines do not have the first one's files.
    assert train(folder / ("elsewhere" if last else "stopped"), group, resume=True).finished
    assert not (folder / "elsewhere").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
