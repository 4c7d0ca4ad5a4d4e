"""Runs: the same seed the same weights, however often stopped; one process as good as two."""

import gc
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from conftest import ROOT
from distributed_run import SETTINGS, train, updater
from forked import Nursery
from launching import launch
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER, tiny_model, weights_of

import deltamem_mlx as dm
from deltamem_mlx.adapters.loading import adapter_of
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training import trainer as trainer_module
from deltamem_mlx.training import update as update_module
from deltamem_mlx.training.checkpoint import STATE_FILE
from deltamem_mlx.training.dataset import EpisodeDataset
from deltamem_mlx.training.episode_settings import EpisodeSettings
from deltamem_mlx.training.guard import Diverged
from deltamem_mlx.training.report import Info, Listener, read_metrics
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.trainer import Outcome, Trainer

RUN = TrainSettings(
    iters=8,
    batch_size=3,
    learning_rate=1e-2,
    save_every=3,
    steps_per_report=2,
    steps_per_eval=4,
    val_batches=1,
    no_memory_prob=0.1,
)


def conversation(number: int) -> ConversationRow:
    name, food = (
        ("Ann", "Bob", "Cid", "Dot", "Eve")[number % 5],
        ("tea", "rice", "milk")[number % 3],
    )
    turns = [f"{name} likes {food}.", "Ok.", f"What does {name} like?", food]
    roles = ("user", "assistant") * 2
    return ConversationRow([{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)])


@pytest.fixture(scope="module")
def episodes() -> EpisodeDataset:
    rows = [conversation(i) for i in range(13)]
    return EpisodeDataset(rows, load_tokenizer(TOKENIZER), EpisodeSettings())


def fresh(seed: int = 1, **settings: object) -> nn.Module:
    return dm.attach(tiny_model(**settings), dm.DeltaMemConfig(rank=4), seed=seed)


def trained(
    episodes: EpisodeDataset,
    folder: Path,
    settings: TrainSettings = RUN,
    model: nn.Module | None = None,
    **options: object,
) -> Outcome:
    return Trainer(model or fresh(), episodes, episodes, settings, folder, **options).run()


def weights(folder: Path) -> dict[str, np.ndarray]:
    arrays = mx.load(str(folder / "adapters.safetensors"))
    return {name: np.array(array) for name, array in arrays.items()}


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    assert all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(episodes: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    assert trained(episodes, folder).finished
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the run that was never stopped draws its own: that takes as long as a run does."""
    monkeypatch.setattr(trainer_module, "draw_curve", lambda folder: False)


class Stop(Listener):
    """Does as Ctrl-C does, after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def on_step(self, info: Info) -> None:
        if info["iteration"] == self.iteration:
            os.kill(os.getpid(), 2)


class Killed(BaseException):
    """Nothing handles it: what is on disk is all that is left."""


def test_a_model_whose_forward_has_no_gradient_is_named(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    config = dm.DeltaMemConfig(rank=4, delta_heads=("q", "o"))
    model = dm.attach(tiny_model("deepseek_v41"), config, seed=1)
    with pytest.raises(ValueError, match=r"forward of 'deepseek_v41' has no gradient, .*VJP"):
        trained(episodes, tmp_path / "run", model=model)


# --- what a run leaves


def test_a_run_learns_and_leaves_its_reports(whole: Path) -> None:
    rows = read_metrics(whole)
    val = [row for row in rows if "val_loss" in row]
    assert [row["iteration"] for row in val] == [0, 4, 8]
    assert val[-1]["val_loss"] < val[0]["val_loss"] - 0.2
    assert val[0]["val_loss"] == pytest.approx(val[0]["val_loss_without"], abs=0.02)
    assert len({row["val_loss_without"] for row in val}) == 1
    train = [row for row in rows if "train_loss" in row]
    assert [row["iteration"] for row in train] == [2, 4, 6, 8]
    assert all(math.isfinite(value) for row in train for value in row.values())
    assert {"beta", "state_norm", "grad_norm", "tokens_per_second"} <= train[0].keys()


def test_files_are_mlx_lm_s(whole: Path) -> None:
    names = {str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file()}
    snapshots = {f"{i:07d}_adapters.safetensors" for i in (3, 6, 8)}
    reports = {"metrics.jsonl", "loss.png"}
    assert names == snapshots | reports | {
        "adapter_config.json",
        "adapters.safetensors",
        str(STATE_FILE),
        str(STATE_FILE.with_name(".lock")),
    }
    model = dm.load_adapter(tiny_model(), whole)
    loaded = adapter_of(model).tensors
    assert all(np.array_equal(loaded[name], array) for name, array in weights(whole).items())


def test_the_folder_can_be_loaded_from_the_first_moment(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    loaded = []

    class Load(Listener):
        def on_save(self, folder: Path, iteration: int) -> None:
            dm.load_adapter(tiny_model(), folder)
            loaded.append(iteration)

    trained(episodes, tmp_path, listeners=[Load()])
    assert loaded == [0, 3, 6, 8]


@pytest.mark.parametrize("bits", [None, 4])
def test_the_base_stays_as_it_was(
    episodes: EpisodeDataset, tmp_path: Path, bits: int | None
) -> None:
    model = tiny_model(hidden_size=64, intermediate_size=64)
    if bits:
        nn.quantize(model, group_size=32, bits=bits)
    before = weights_of(model)
    dm.attach(model, dm.DeltaMemConfig(rank=4), seed=1)
    start = adapter_of(model).tensors
    trained(episodes, tmp_path, replace(RUN, iters=3, grad_checkpoint=True), model)
    after = adapter_of(model).tensors
    changed = [name for name in start if not mx.array_equal(start[name], after[name])]
    assert changed == list(start)
    dm.detach(model)
    now = weights_of(model)
    assert now.keys() == before.keys()
    assert all(mx.array_equal(now[name], before[name]) for name in now)


def test_without_held_out_episodes(episodes: EpisodeDataset, tmp_path: Path) -> None:
    outcome = Trainer(fresh(), episodes, [], replace(RUN, iters=2), tmp_path).run()
    assert (outcome.finished, outcome.val_loss, outcome.val_loss_without) == (True, None, None)


# --- the same weights


def test_same_seed_same_weights(episodes: EpisodeDataset, whole: Path, tmp_path: Path) -> None:
    other_reports = replace(RUN, steps_per_report=1, steps_per_eval=3, save_every=2, val_batches=1)
    trained(episodes, tmp_path / "same", other_reports)
    assert_same_weights(whole, tmp_path / "same")
    trained(episodes, tmp_path / "other", replace(RUN, seed=5))
    first, other = weights(whole), weights(tmp_path / "other")
    assert not any(np.array_equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("at", [1, 3, 7])
def test_interrupted_and_resumed(
    episodes: EpisodeDataset, whole: Path, tmp_path: Path, at: int
) -> None:
    outcome = trained(episodes, tmp_path, listeners=[Stop(at)])
    assert (outcome.iteration, outcome.finished) == (at, False)
    again = trained(episodes, tmp_path, model=fresh(seed=9), resume=True)
    assert (again.iteration, again.finished) == (8, True)
    assert again.seconds > outcome.seconds
    assert_same_weights(whole, tmp_path)
    kept = ("iteration", "val_loss")
    rows = [[r.get(k) for k in kept] for r in read_metrics(tmp_path) if "val_loss" in r]
    assert rows == [[r.get(k) for k in kept] for r in read_metrics(whole) if "val_loss" in r]


def test_killed_at_every_moment_of_writing(
    episodes: EpisodeDataset, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every file appears by a rename: before and after each one a process may be killed."""
    rename, count, dies = os.replace, [0], [0]

    def replace_or_die(source: Path, target: Path) -> None:
        count[0] += 1
        if count[0] == dies[0] // 2 + 1 and dies[0] % 2 == 0:
            raise Killed
        rename(source, target)
        if count[0] == dies[0] // 2 + 1 and dies[0] % 2 == 1:
            raise Killed

    monkeypatch.setattr(os, "replace", replace_or_die)
    settings = replace(RUN, iters=2, save_every=1)
    dies[0] = -1

    def trained(*args: object, **options: object) -> Outcome:
        model = fresh(seed=2 if options else 1)
        return Trainer(model, episodes, [], settings, *args, **options).run()

    trained(tmp_path / "whole")
    moments = 2 * count[0]
    assert moments == 26  # that it begins, the metrics, then three checkpoints, two with a copy
    for moment in range(moments):
        folder = tmp_path / str(moment)
        count[0], dies[0] = 0, moment
        with pytest.raises(Killed):
            trained(folder)
        dies[0] = -1
        kept = (folder / STATE_FILE).exists()
        assert (trained(folder, resume=True) if kept else trained(folder)).finished
        assert_same_weights(tmp_path / "whole", folder)
        assert not [path for path in folder.rglob(".*") if path.name != ".lock"]


def test_gradients_flow_after_a_validation(episodes: EpisodeDataset, tmp_path: Path) -> None:
    """Validation packs the weights for inference; training has to look at the weights again."""
    trainer = Trainer(fresh(), episodes, episodes, RUN, tmp_path)
    batch = next(trainer._stream)
    before, _ = trainer.updater.gradients([batch])
    trainer.evaluate(episodes)
    after, _ = trainer.updater.gradients([batch])
    for (name, a), (_, b) in zip(tree_flatten(before), tree_flatten(after), strict=True):
        assert mx.array_equal(a, b), name
        assert mx.abs(a).max().item() > 0, name


def test_the_control_needs_another_conversation_and_no_batch_of_two(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    one = EpisodeDataset([conversation(1)], load_tokenizer(TOKENIZER), EpisodeSettings())
    settings = replace(RUN, iters=2, save_every=2, steps_per_eval=2)
    alone = Trainer(fresh(), episodes, one, settings, tmp_path / "one").run()
    assert alone.val_loss is not None and alone.val_loss_foreign is None
    model = dm.attach(tiny_model(), dm.DeltaMemConfig(rank=4, output_init="random"), seed=1)
    single = replace(settings, batch_size=1)
    found = Trainer(model, episodes, episodes, single, tmp_path / "single").run()
    assert found.val_loss_foreign != found.val_loss


def test_memory_stays_flat(episodes: EpisodeDataset, tmp_path: Path) -> None:
    seen = {}

    class Watch(Listener):
        def on_step(self, info: Info) -> None:
            seen[info["iteration"]] = mx.get_active_memory()

    gc.collect()
    mx.synchronize()
    trained(episodes, tmp_path, replace(RUN, iters=40), listeners=[Watch()])
    early, late = (max(seen[i] for i in steps) for steps in (range(5, 16), range(30, 41)))
    assert late <= 1.01 * early


# --- one update


@pytest.mark.parametrize("alike", [False, True], ids=["tokens", "episodes"])
def test_accumulated_batches_are_one_batch(
    episodes: EpisodeDataset, tmp_path: Path, alike: bool
) -> None:
    settings = replace(RUN, write_sparsity=0.0, state_only_prob=0.0, no_memory_prob=0.0)
    settings = replace(settings, count_alike=alike)
    one = Trainer(fresh(), episodes, [], replace(settings, batch_size=6), tmp_path / "a")
    two = replace(settings, grad_accumulation_steps=2)
    two = Trainer(fresh(), episodes, [], two, tmp_path / "b")
    joint, figures = one.updater.gradients([next(one._stream)])
    summed, parts = two.updater.gradients([next(two._stream), next(two._stream)])
    assert parts.ce == pytest.approx(figures.ce, rel=1e-5)
    assert parts.labelled == figures.labelled
    for (name, a), (_, b) in zip(tree_flatten(joint), tree_flatten(summed), strict=True):
        assert mx.abs(a - b).max() <= 1e-5 * mx.abs(a).max() + 1e-8, name


def test_accumulation_counts_batches_as_iterations(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    settings = replace(RUN, iters=9, grad_accumulation_steps=2, save_every=3)
    outcome = trained(episodes, tmp_path, settings)
    assert (outcome.iteration, outcome.finished) == (8, True)
    saved = sorted(path.name for path in tmp_path.glob("0*_adapters.safetensors"))
    assert saved == [f"{i:07d}_adapters.safetensors" for i in (4, 6, 8)]


def test_update_is_clipped_adamw(episodes: EpisodeDataset, tmp_path: Path) -> None:
    settings = replace(RUN, lr_schedule="constant", warmup=0.0, max_grad_norm=0.01)
    trainer = Trainer(fresh(), episodes, [], settings, tmp_path)
    mean = spread = 0.0
    for step in range(1, 4):
        batch = next(trainer._stream)
        before = dict(tree_flatten(trainer.updater.params))
        gradients = dict(tree_flatten(trainer.updater.gradients([batch])[0]))
        norm = math.sqrt(sum(np.square(np.array(g)).sum() for g in gradients.values()))
        assert norm > 0.01
        name = "layer_0.memory_v_proj"
        g = np.array(gradients[name], np.float64) * 0.01 / norm
        mean, spread = 0.9 * mean + 0.1 * g, 0.999 * spread + 0.001 * g * g
        update = mean / (1 - 0.9**step) / (np.sqrt(spread / (1 - 0.999**step)) + 1e-8)
        expected = np.array(before[name]) - 1e-2 * update
        figures = trainer.updater.update([batch], step - 1)
        after = np.array(trainer.updater.params["layer_0"]["memory_v_proj"])
        assert figures.grad_norm == pytest.approx(norm, rel=1e-5)
        assert np.abs(after - expected).max() < 2e-5


def test_a_step_is_bounded_by_the_size_of_what_it_changes(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    """Of each array by its own size, and in AdamW's direction; large ones are not bounded."""
    settings = replace(RUN, lr_schedule="constant", warmup=0.0)
    moved = {}
    for bound in (0.0, 0.02, 1e3):
        folder = tmp_path / str(bound)
        trainer = Trainer(fresh(), episodes, [], replace(settings, max_step=bound), folder)
        before = dict(tree_flatten(trainer.updater.params))
        trainer.updater.update([next(trainer._stream)], 0)
        after = dict(tree_flatten(trainer.updater.params))
        moved[bound] = {name: np.array(after[name] - before[name]) for name in before}
    bounded = 0
    for name, free in moved[0.0].items():
        size = max(np.sqrt(np.square(np.array(before[name])).mean()), 1e-3)
        share = min(1.0, 0.02 * size / settings.learning_rate)
        np.testing.assert_allclose(moved[0.02][name], share * free, rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(moved[1e3][name], free, rtol=1e-3, atol=1e-7)
        bounded += share < 1
    assert 0 < bounded < len(moved[0.0]), "the test tells arrays apart"


def test_a_bounded_run_goes_on_to_the_bit(episodes: EpisodeDataset, tmp_path: Path) -> None:
    settings = replace(RUN, max_step=0.01)
    trained(episodes, tmp_path / "whole", settings)
    trained(episodes, tmp_path / "part", settings, listeners=[Stop(3)])
    trained(episodes, tmp_path / "part", settings, model=fresh(seed=9), resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "part")


def test_learning_rate_rises_then_falls() -> None:
    rates = [TrainSettings(iters=100, learning_rate=1.0).learning_rate_at(i) for i in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    constant = TrainSettings(iters=10, learning_rate=1.0, lr_schedule="constant", warmup=0.0)
    assert {constant.learning_rate_at(i) for i in range(10)} == {1.0}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, nursery: Nursery) -> Path:
    """What two processes wrote."""
    folder = tmp_path_factory.mktemp("two")
    done = launch(nursery, ROOT / "tests" / "helpers" / "distributed_run.py", folder)
    assert (folder / "stopped" / "0000004_adapters.safetensors").exists(), done.stderr
    return folder


def test_two_processes_have_the_gradients_of_one(two_processes: Path) -> None:
    made, batch = updater(mx.distributed.init())
    gradients, figures = made.gradients([batch])
    with np.load(two_processes / "gradients.npz") as two:
        assert (two["size"], two["labelled"]) == (2, figures.labelled)
        assert two["loss"] == pytest.approx(figures.loss, rel=1e-6)
        for name, expected in tree_flatten(gradients):
            limit = 1e-5 * np.abs(expected).max() + 1e-8
            assert np.abs(two[name] - np.array(expected)).max() <= limit, name
    assert figures.loss - figures.ce > 0.01 * SETTINGS.write_sparsity  # gates far from the target


def test_two_processes_train_and_resume(two_processes: Path, tmp_path: Path) -> None:
    assert_same_weights(two_processes / "whole", two_processes / "stopped")
    train(tmp_path)
    one, two = weights(tmp_path), weights(two_processes / "whole")
    assert max(np.abs(one[name] - two[name]).max() for name in one) < 1e-4


# --- what ends a run, and what a run refuses


def poisoned(monkeypatch: pytest.MonkeyPatch, at: int, **figures: float) -> None:
    real = update_module.Updater.update

    def update(self: object, batches: list, number: int) -> object:
        result = real(self, batches, number)
        return result._replace(**figures) if number >= at else result

    monkeypatch.setattr(update_module.Updater, "update", update)


@pytest.mark.parametrize(
    ("at", "figures", "said"),
    [
        (4, {"loss": math.nan, "ce": math.nan}, "became nan at iteration 5"),
        (4, {"grad_norm": math.inf}, "gradient norm inf"),
        (12, {"ce": 90.0}, r"grew from \d.* to .* at iteration"),
    ],
)
def test_diverging_stops_and_keeps_the_last_checkpoint(
    episodes: EpisodeDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    at: int,
    figures: dict[str, float],
    said: str,
) -> None:
    poisoned(monkeypatch, at, **figures)
    with pytest.raises(Diverged, match=said) as error:
        trained(episodes, tmp_path, replace(RUN, iters=40))
    saved = 12 if at == 12 else 3
    assert f"The checkpoint of iteration {saved} stays in {tmp_path}" in str(error.value)
    snapshot = mx.load(str(tmp_path / f"{saved:07d}_adapters.safetensors"))
    assert all(np.array_equal(snapshot[name], array) for name, array in weights(tmp_path).items())


def test_a_real_divergence(episodes: EpisodeDataset, tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        trained(episodes, tmp_path, replace(RUN, learning_rate=1e30, iters=20, save_every=1))
    assert all(np.isfinite(array).all() for array in weights(tmp_path).values())


def test_unfinished_runs_are_not_overwritten(
    episodes: EpisodeDataset, whole: Path, tmp_path: Path
) -> None:
    trained(episodes, tmp_path, listeners=[Stop(5)])
    before = weights(tmp_path)
    with pytest.raises(FileExistsError, match=r"unfinished run, at iteration 5 of 8.*--resume"):
        trained(episodes, tmp_path)
    assert all(np.array_equal(before[name], array) for name, array in weights(tmp_path).items())
    copy, short = tmp_path / "copy", replace(RUN, iters=2, save_every=9)
    shutil.copytree(whole, copy)
    with pytest.raises(FileExistsError, match=r"finished run of 8 iterations.*--overwrite"):
        trained(episodes, copy, short)
    assert_same_weights(whole, copy)
    assert trained(episodes, copy, short, overwrite=True).finished
    left = [path.name for path in (tmp_path / "copy").glob("*_adapters.safetensors")]
    assert left == ["0000002_adapters.safetensors"]


def test_resume_refuses_another_run(episodes: EpisodeDataset, tmp_path: Path) -> None:
    trained(episodes, tmp_path, listeners=[Stop(5)])
    settings = replace(RUN, learning_rate=1e-3, seed=4, save_every=1)
    other = EpisodeDataset(
        [conversation(i + 1) for i in range(13)], load_tokenizer(TOKENIZER), EpisodeSettings()
    )
    with pytest.raises(ValueError, match="other settings or data") as error:
        Trainer(fresh(), other, [], settings, tmp_path, resume=True)
    lines = str(error.value).splitlines()
    assert lines[2:-1] == ["  learning_rate: 0.01, now 0.001", "  seed: 0, now 4"]
    assert lines[1].startswith("  data: ")


def test_resume_of_nothing_begins_anew(
    episodes: EpisodeDataset, whole: Path, tmp_path: Path
) -> None:
    assert trained(episodes, tmp_path, resume=True).finished
    assert_same_weights(whole, tmp_path)
    again = trained(episodes, tmp_path, model=fresh(seed=3), resume=True)
    assert (again.iteration, again.finished) == (8, True)
    assert_same_weights(whole, tmp_path)


def test_damaged_state_is_named(episodes: EpisodeDataset, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    state = tmp_path / STATE_FILE
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read"):
        Trainer(fresh(), episodes, [], RUN, tmp_path, resume=True)


def test_metrics_survive_a_line_cut_short(
    episodes: EpisodeDataset, whole: Path, tmp_path: Path
) -> None:
    trained(episodes, tmp_path, listeners=[Stop(3)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"iteration": 6, "train_loss": 1.0}) + '\n{"iteration": 7, "tr')
    trained(episodes, tmp_path, resume=True)
    columns = ("iteration", "train_loss", "val_loss")
    rows = [[row.get(c) for c in columns] for row in read_metrics(tmp_path)]
    # The report that was due at 4 covers what was left of its window.
    assert rows[-3:] == [[row.get(c) for c in columns] for row in read_metrics(whole)][-3:]
    assert [row[0] for row in rows] == [0, 2, 4, 4, 6, 8, 8]


def test_settings_are_checked_all_at_once() -> None:
    with pytest.raises(ValueError) as error:
        TrainSettings(iters=0, learning_rate=-1, warmup=2, val_batches=0, lr_schedule="linear")
    for name in ("iters", "learning_rate", "warmup", "val_batches", "lr_schedule"):
        assert f"{name} is" in str(error.value)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no episodes"):
        Trainer(fresh(), [], [], RUN, tmp_path)
