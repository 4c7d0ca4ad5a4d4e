"""Run by `mlx.launch`: writes the gradients of one update, and the adapters of two runs.

usage: distributed_run.py FOLDER
"""

import sys
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import load
from tiny import TOKENIZER, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.batching import EpisodeBatch, batches
from deltamem_mlx.training.dataset import EpisodeDataset
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.objective import Objective
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.trainer import Outcome, Trainer
from deltamem_mlx.training.update import Figures, Updater

SETTINGS = TrainSettings(
    iters=4,
    batch_size=4,
    val_batches=1,
    learning_rate=1e-2,
    state_only_prob=0.3,
    no_memory_prob=0.3,
    write_sparsity=10.0,
    distill=0.5,
    no_harm=2.0,
    margin=0.5,
)


def conversation(number: int) -> ConversationRow:
    """One of unequal length: a history, and a reply to learn."""
    turns = [("user", f"I am {'x' * (3 * number)}."), ("assistant", "Ok." * (number % 3 + 1))]
    turns += [("user", "Who?"), ("assistant", "You are " + "x" * number)]
    messages = [{"role": role, "content": text} for role, text in turns]
    return ConversationRow(messages, unrelated=frozenset({1, 3} if number == 2 else ()))


def attached(seed: int = 1) -> nn.Module:
    config = dm.DeltaMemConfig(rank=4, output_init="random", online_gain=1.0)
    return dm.attach(tiny_model(), config, seed=seed)


def episodes() -> EpisodeDataset:
    rows = [conversation(i) for i in range(6)]
    return EpisodeDataset(rows, load(TOKENIZER), EpisodeSettings(taught=True))


def updater(group: mx.distributed.Group) -> tuple[Updater, EpisodeBatch]:
    """Of a tiny model, with this process's part of the first batch."""
    stream = batches(episodes(), 4, seed=1, rank=group.rank(), world_size=group.size())
    return Updater(Objective(attached()), SETTINGS, group), next(stream)


def train(folder: Path, *, stop_at: int | None = None, **options: object) -> Outcome:
    """Four iterations; ``stop_at`` interrupts this process alone."""
    data, seed = episodes(), 1 + options.get("resume", 0)
    trainer = Trainer(attached(seed), data, data, SETTINGS, folder, **options)
    real = trainer.updater.update

    def update(parts: list[EpisodeBatch], number: int) -> Figures:
        if number == stop_at:
            trainer._interrupt()
        return real(parts, number)

    trainer.updater.update = update
    return trainer.run()


def main(folder: Path) -> None:
    group = mx.distributed.init()
    last = group.rank() == group.size() - 1
    made, batch = updater(group)
    gradients, figures = made.gradients([batch])
    arrays = {name: np.array(g) for name, g in tree_flatten(gradients)}
    if last:
        about = {"size": group.size(), "loss": figures.loss, "labelled": figures.labelled}
        np.savez(folder / "gradients.npz", **about, **arrays)
    train(folder / "whole")
    assert not train(folder / "stopped", stop_at=1 if last else None).finished
    # Processes on other machines do not have the first one's files.
    assert train(folder / ("elsewhere" if last else "stopped"), resume=True).finished
    assert not (folder / "elsewhere").exists()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
