"""The margin: what another conversation's memory is to lose more than the own."""

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.batching import EpisodeBatch, evaluation_batches
from deltamem_mlx.training.checkpoint import identity_of
from deltamem_mlx.training.dataset import EpisodeDataset
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.grad_checkpoint import checkpointed
from deltamem_mlx.training.margin import neighbours, shortfall
from deltamem_mlx.training.objective import Objective, Terms
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.trainer import Trainer
from deltamem_mlx.training.update import Updater

FAR = 100.0  # nats that no tiny model has: all of the difference is missing


def row(number: int, *, unrelated: bool = False) -> ConversationRow:
    name, food = ("Ann", "Bob", "Cid", "Dot", "Eve")[number], ("tea", "rice", "milk")[number % 3]
    said = [f"{name} likes {food}." + " Yes." * number, "Ok.", f"What does {name} like?", food]
    roles = ("user", "assistant") * 2
    messages = [{"role": r, "content": text} for r, text in zip(roles, said, strict=True)]
    return ConversationRow(messages, unrelated=frozenset({1, 3} if unrelated else ()))


def dataset(*rows: ConversationRow) -> EpisodeDataset:
    return EpisodeDataset(rows, load_tokenizer(TOKENIZER), EpisodeSettings())


def model() -> nn.Module:
    config = dm.DeltaMemConfig(rank=4, output_init="random", online_gain=2.0)
    return dm.attach(tiny_model(), config, seed=1)


def batch_of(episodes: EpisodeDataset, *, mode: str = "both") -> EpisodeBatch:
    return next(evaluation_batches(episodes, len(episodes), mode=mode, multiple=8))


def terms(batch: EpisodeBatch, margin: float = 0.0, **settings: bool) -> Terms:
    objective = Objective(model(), **settings)
    return objective.terms(objective.inputs(batch), margin)


def losses(rows: list[ConversationRow], memories: list[ConversationRow]) -> list[float]:
    """The mean loss of each conversation's reply, its history taken from another."""
    found = []
    for own, told in zip(rows, memories, strict=True):
        mixed = ConversationRow([*told.messages[:2], *own.messages[2:]])
        found.append(float(terms(batch_of(dataset(mixed))).ce))
    return found


def test_neighbours_change_places_and_a_last_one_keeps_its_own() -> None:
    assert neighbours(5).tolist() == [1, 0, 3, 2, 4]
    assert neighbours(1).tolist() == [0]


@pytest.mark.parametrize("alike", [False, True])
def test_what_is_missing_is_told_by_each_conversation_read_by_itself(alike: bool) -> None:
    rows = [row(i) for i in range(5)]
    own, foreign = losses(rows, rows), losses(rows, [rows[i] for i in (1, 0, 3, 2, 4)])
    batch = batch_of(dataset(*rows))
    tokens = np.ones(5) if alike else (batch.read_labels[:, 1:] != -100).sum(axis=1)
    more = np.subtract(foreign, own)
    for margin in (1e-3, float(np.median(more[:4])), FAR):
        wanted = (np.maximum(margin - more, 0) * tokens)[:4].sum()  # the fifth has no neighbour
        found = terms(batch, margin, count_alike=alike)
        assert found.missing.item() == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        assert found.ce_sum.item() == terms(batch, count_alike=alike).ce_sum.item()


def test_conversations_that_wrote_nothing_and_replies_that_are_not_learned_do_not_count() -> None:
    nothing = terms(batch_of(dataset(row(0), row(1)), mode="no_memory"), FAR)
    assert nothing.missing.item() == 0
    silent = terms(batch_of(dataset(row(0), row(1, unrelated=True))), FAR)
    both = terms(batch_of(dataset(row(0), row(1))), FAR)
    assert 0 < silent.missing.item() < both.missing.item()
    alone = terms(batch_of(dataset(row(0))), FAR)
    assert alone.missing.item() == 0


def test_without_labels_nothing_is_missing_and_nothing_is_divided_by_zero() -> None:
    none = mx.zeros((4,))
    found = shortfall(none, none, none, mx.zeros((4,), mx.int32), mx.array([True, True]), 1.0)
    assert found.item() == 0


@pytest.mark.parametrize("checkpoints", [False, True])
def test_its_gradient_is_that_of_finite_differences(checkpoints: bool) -> None:
    settings = TrainSettings(margin=FAR, write_sparsity=0.0, state_only_prob=0.0)
    batch = batch_of(dataset(row(0), row(1)))
    patched = model()
    updater = Updater(Objective(patched), settings, mx.distributed.init())
    if checkpoints:
        with checkpointed(patched):
            found = updater.gradients([batch])[0]
    else:
        found = updater.gradients([batch])[0]

    def loss(at: float) -> float:
        moved = model()
        for layer, attention in enumerate(block.self_attn for block in moved.layers):
            attention.memory_v_proj = (
                attention.memory_v_proj + at * found[f"layer_{layer}"]["memory_v_proj"]
            )
        objective = Objective(moved)
        told = objective.terms(objective.inputs(batch), FAR)
        return ((told.ce_sum + told.missing) / told.labelled).item()

    slope = sum(mx.square(g["memory_v_proj"]).sum().item() for g in found.values())
    step = 1e-2 / max(slope, 1e-9) ** 0.5
    assert (loss(step) - loss(-step)) / (2 * step) == pytest.approx(slope, rel=0.05)


def test_a_run_with_it_goes_on_to_the_bit_and_one_without_it_is_as_before(tmp_path: Path) -> None:
    data = dataset(*(row(i) for i in range(4)))
    run = TrainSettings(iters=4, batch_size=4, learning_rate=1e-2, save_every=2, margin=0.5)
    assert "margin" not in identity_of(model(), replace(run, margin=0.0), data, 1)
    assert identity_of(model(), run, data, 1)["margin"] == 0.5

    def weights(folder: Path, settings: TrainSettings, stop_at: int | None = None) -> dict:
        patched = model()
        trainer = Trainer(patched, data, data, settings, folder, resume=folder.exists())
        update = trainer.updater.update

        def watched(parts: list[EpisodeBatch], number: int):
            if number == stop_at:
                trainer._interrupt()
            return update(parts, number)

        trainer.updater.update = watched
        trainer.run()
        return {k: np.array(v) for k, v in tree_flatten(patched.trainable_parameters())}

    whole = weights(tmp_path / "whole", run)
    weights(tmp_path / "stopped", run, stop_at=1)
    again = weights(tmp_path / "stopped", run)
    assert all((again[name] == whole[name]).all() for name in whole)
    without = weights(tmp_path / "without", replace(run, margin=0.0))
    assert any((without[name] != whole[name]).any() for name in whole)


def test_a_batch_in_which_nobody_has_a_neighbour_is_refused() -> None:
    with pytest.raises(ValueError, match="and batch_size 1: a conversation needs another"):
        TrainSettings(margin=0.5, batch_size=1)
    updater = Updater(Objective(model()), TrainSettings(margin=0.5), mx.distributed.init())
    assert updater.part == (0, 1)

    class Four:  # processes, each with one of a batch of four
        def rank(self) -> int:
            return 0

        def size(self) -> int:
            return 4

    with pytest.raises(ValueError, match="with a batch of 4 on 4 processes"):
        Updater(Objective(model()), TrainSettings(margin=0.5, batch_size=4), Four())
