"""What a folder holds before a run: other adapters, other runs, another process, forged states."""

import json
import shutil
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from forked import Nursery
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER, tiny_model

import deltamem_mlx as dm
from deltamem_mlx.adapters.weights import sealed, write_safetensors
from deltamem_mlx.files import FileChanged, FolderInUse
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.checkpoint import STATE_FILE, read_checkpoint
from deltamem_mlx.training.dataset import EpisodeDataset
from deltamem_mlx.training.folder import BEGUN, one_run
from deltamem_mlx.training.report import read_metrics
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.trainer import Trainer

FOODS = ("tea", "rice", "milk")
RUN = TrainSettings(iters=2, batch_size=2, save_every=1, steps_per_report=1)


def conversation(food: str, reply: str | None = None) -> ConversationRow:
    turns = [f"I like {food}.", "Ok.", "What do I like?", food if reply is None else reply]
    roles = ("user", "assistant") * 2
    return ConversationRow([{"role": r, "content": t} for r, t in zip(roles, turns, strict=True)])


@pytest.fixture(scope="module")
def episodes() -> EpisodeDataset:
    rows = [conversation(food) for food in FOODS]
    return EpisodeDataset(rows, load_tokenizer(TOKENIZER))


def trainer(episodes: EpisodeDataset, folder: Path, **options: bool) -> Trainer:
    model = dm.attach(tiny_model(), dm.DeltaMemConfig(rank=4), seed=1)
    return Trainer(model, episodes, [], RUN, folder, **options)


@pytest.fixture(scope="module")
def finished(episodes: EpisodeDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    assert trainer(episodes, folder).run().finished
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def lora(folder: Path) -> Path:
    """As mlx-lm leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "lora"}))
    tensors = {"model.layers.0.self_attn.q_proj.lora_a": mx.zeros((2, 2))}
    for name in ("adapters", "0000100_adapters"):
        mx.save_safetensors(str(folder / f"{name}.safetensors"), tensors)
    return folder


def alone(folder: Path, *names: str) -> Path:
    """A folder with some files of a LoRA's folder only."""
    whole = lora(folder / "whole")
    part = folder / "part"
    part.mkdir()
    for name in names:
        shutil.copy(whole / name, part)
    return part


@pytest.mark.parametrize(
    "names",
    [
        ("adapter_config.json",),
        ("adapters.safetensors",),
        ("0000100_adapters.safetensors",),
        ("adapter_config.json", "adapters.safetensors", "0000100_adapters.safetensors"),
    ],
)
def test_another_programs_adapter_stays(
    episodes: EpisodeDataset, tmp_path: Path, names: tuple[str, ...]
) -> None:
    folder = alone(tmp_path, *names)
    before = contents(folder)
    for resume in (False, True):
        with pytest.raises(FileExistsError, match=r"--overwrite"):
            trainer(episodes, folder, resume=resume)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "loss.png", "delta_mem_config.json"])
def test_files_with_a_runs_names_stay(episodes: EpisodeDataset, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=name):
        trainer(episodes, tmp_path)
    assert contents(tmp_path) == {name: b"mine"}


def test_other_files_in_the_folder_are_no_reason_to_refuse(
    episodes: EpisodeDataset, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert trainer(episodes, tmp_path).run().finished
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_finished_adapter_stays(episodes: EpisodeDataset, finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"finished run of 2.*--resume-adapter-file"):
        trainer(episodes, tmp_path)
    assert contents(tmp_path) == before
    shutil.rmtree(tmp_path / "training")
    with pytest.raises(FileExistsError, match=r"adapter of type 'delta_mem'"):
        trainer(episodes, tmp_path, resume=True)


def test_overwriting_leaves_the_numbered_copies_of_a_lora(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path
) -> None:
    lora(tmp_path)
    before = (tmp_path / "0000100_adapters.safetensors").read_bytes()
    ours = tmp_path / "0000077_adapters.safetensors"
    shutil.copy(finished / "0000001_adapters.safetensors", ours)
    assert trainer(episodes, tmp_path, overwrite=True).run().finished
    assert (tmp_path / "0000100_adapters.safetensors").read_bytes() == before
    assert not ours.exists()
    dm.load_adapter(tiny_model(), tmp_path)


def test_a_run_begun_in_place_of_another_and_stopped_at_once_leaves_that_one(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures are gone, nothing else: one can go on with it."""

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    reports = {"metrics.jsonl", "loss.png"}
    before = {name: data for name, data in contents(tmp_path).items() if name not in reports}
    with monkeypatch.context() as patch:
        patch.setattr("deltamem_mlx.training.trainer.save_checkpoint", stopped)
        with pytest.raises(KeyboardInterrupt):
            trainer(episodes, tmp_path, overwrite=True).run()
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"metrics.jsonl", "training/.lock"}
    with pytest.raises(FileExistsError, match="finished run of 2"):
        trainer(episodes, tmp_path)
    assert trainer(episodes, tmp_path, resume=True).iteration == 2


def test_a_run_stopped_before_its_first_checkpoint_can_begin_again(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    (tmp_path / STATE_FILE).rename(tmp_path / BEGUN)
    for resume in (False, True):
        trainer(episodes, tmp_path, resume=resume)
    lora(tmp_path)
    with pytest.raises(FileExistsError, match="lora"):
        trainer(episodes, tmp_path)


def test_two_processes_do_not_train_in_one_folder(episodes: EpisodeDataset, tmp_path: Path) -> None:
    late = trainer(episodes, tmp_path)
    with one_run(tmp_path), pytest.raises(FolderInUse, match="another train"):
        late.run()
    assert not (tmp_path / "adapters.safetensors").exists()
    assert trainer(episodes, tmp_path).run().finished
    before = contents(tmp_path)
    with pytest.raises(FileChanged, match=r"state\.safetensors"):
        late.run()
    assert contents(tmp_path) == before


# --- states


def test_four_bytes_slipped_into_a_state_are_noticed(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    path = tmp_path / STATE_FILE
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(data[:start] + b"\0\0\0\0" + data[start:-4])
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read.*checksum"):
        trainer(episodes, tmp_path, resume=True)


def test_a_state_of_the_version_before_has_no_checksum_and_goes_on(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    found = read_checkpoint(finished)
    assert found is not None
    state, progress, identity = found
    about = {"progress": json.dumps(vars(progress)), "identity": json.dumps(identity)}
    mx.save_safetensors(str(tmp_path / STATE_FILE), state, about)
    assert trainer(episodes, tmp_path, resume=True).iteration == 2


FORGED = {
    "update": [-1, 3, 2**31, 2.0, "2", None, [], True],
    "trained_tokens": [-1, 2**70, "x", None],
    "seconds": [-1, "1", None],
    "first": [None, 3, ["x"], [None], [0.0] * 11],
    "recent": [{}, "abc"],
    "val_loss": ["x", [], {}],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in FORGED.items() for value in values]
)
def test_every_field_of_a_state_is_looked_at(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"state\.safetensors cannot be read: .*{name}"):
        resume_forged(episodes, finished, tmp_path, lambda p, i, t: p.update({name: value}))


@pytest.mark.parametrize("value", [0, -1, "2", None, [], 2**40])
@pytest.mark.parametrize("name", ["iters", "grad_accumulation_steps"])
def test_what_a_states_run_is_known_by_is_looked_at(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, name: str, value: object
) -> None:
    with pytest.raises(ValueError, match=rf"state\.safetensors cannot be read: .*{name}"):
        resume_forged(episodes, finished, tmp_path, lambda p, i, t: i.update({name: value}))


def test_a_state_has_all_tensors_and_no_others(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path
) -> None:
    first = "adapter.layer_0.beta_bias"
    changes = {
        f"{first}: missing": lambda p, i, t: t.pop(first),
        "more: not used|'more': not used": lambda p, i, t: t.update(more=mx.zeros(1)),
        f"{first}: .*expected": lambda p, i, t: t.update({first: mx.zeros((9, 9))}),
        f"{first}: NaN": lambda p, i, t: t.update({first: t[first] * float("nan")}),
    }
    for said, change in changes.items():
        with pytest.raises(ValueError, match=said):
            resume_forged(episodes, finished, tmp_path, change)


@pytest.mark.parametrize(
    "about", ["[" * 100_000, '{"progress": ' + "9" * 5000 + "}", "[]", "", "{}"]
)
def test_what_is_no_state_is_one_sentence(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, about: str
) -> None:
    tensors = {"x": mx.zeros(1)}
    (tmp_path / STATE_FILE).parent.mkdir()
    write_safetensors(tmp_path / STATE_FILE, tensors, sealed(tensors, about, ""))
    with pytest.raises(ValueError, match=r"state\.safetensors cannot be read") as error:
        trainer(episodes, tmp_path, resume=True)
    assert len(str(error.value)) < 600


LINES = (
    '{"iteration": "x"}',
    '{"iteration": null}',
    '{"iteration": 1, "val_loss": "x"}',
    '{"iteration": 1, "train_loss": [1]}',
    "[]",
    "[" * 100_000,
    f'{{"iteration": {"9" * 5000}}}',
)


@pytest.mark.parametrize("line", LINES)
def test_lines_of_metrics_that_no_run_wrote_are_passed_over(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, line: str
) -> None:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    before = read_metrics(tmp_path)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    assert trainer(episodes, tmp_path, resume=True).run().finished
    assert read_metrics(tmp_path) == before


@pytest.mark.parametrize(
    "room", [0, 2000, 20_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 300, 6000))]
)
def test_a_disk_that_is_full_ends_a_run_with_the_files_name_and_it_goes_on(
    episodes: EpisodeDataset, finished: Path, tmp_path: Path, room: int, nursery: Nursery
) -> None:
    """The system refuses files of more bytes, as a full disk does, wherever the writer is."""
    code = (
        "import resource, signal, sys; sys.path[:0] = sys.argv[3:]\n"
        "import test_folder as t; from pathlib import Path\n"
        "t.mx.random.seed(0); e = t.EpisodeDataset([t.conversation(f) for f in t.FOODS],"
        " t.load_tokenizer(t.TOKENIZER))\n"
        "run = t.trainer(e, Path(sys.argv[1]))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)\n"
        "try: run.run(); print('done')\n"
        "except OSError as error: print(type(error).__name__, error)\n"
    )
    with nursery.piped("-c", code, tmp_path, str(room), *sys.path) as run:
        said, notes = run.communicate()
        assert run.wait() == 0, notes
    assert said.startswith(("WriteError", "done")), said
    if said.startswith("WriteError"):
        assert str(tmp_path) in said
        assert "could not be written" in said
    assert trainer(episodes, tmp_path, resume=True).run().finished
    assert same_weights(tmp_path, finished)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (mx.load(str(folder / "adapters.safetensors")) for folder in (a, b))
    assert isinstance(first, dict)
    assert isinstance(second, dict)
    return first.keys() == second.keys() and all(
        np.array_equal(np.array(first[name]), np.array(second[name])) for name in first
    )


def resume_forged(episodes: EpisodeDataset, finished: Path, folder: Path, change: object) -> None:
    """Go on from a state that was changed and has a right checksum."""
    found = read_checkpoint(finished)
    assert found is not None
    tensors, progress, identity = found
    values = dict(vars(progress))
    change(values, identity, tensors)
    about = json.dumps({"progress": values, "identity": identity})
    (folder / STATE_FILE).parent.mkdir(exist_ok=True)
    write_safetensors(folder / STATE_FILE, tensors, sealed(tensors, about, ""))
    trainer(episodes, folder, resume=True)


# --- what is said of data


@pytest.mark.parametrize("reply", ["", " \n"])
def test_empty_replies_are_counted(reply: str) -> None:
    rows = [conversation("tea", reply), conversation("milk"), conversation("rice", reply)]
    notes = EpisodeDataset(rows, load_tokenizer(TOKENIZER)).report().notes()
    assert any(note.startswith("2 of 3 replies are empty") for note in notes)
    notes = EpisodeDataset(rows[1:2], load_tokenizer(TOKENIZER)).report().notes()
    assert not any("empty" in note for note in notes)


def test_weights_are_what_the_state_holds(finished: Path) -> None:
    found = read_checkpoint(finished)
    assert found is not None
    kept = {name: array for name, array in found[0].items() if name.startswith("adapter.")}
    weights = mx.load(str(finished / "adapters.safetensors"))
    assert len(kept) >= len(weights) > 0
    written = {tuple(np.array(a).flatten().tolist()) for a in weights.values()}
    assert written <= {tuple(np.array(a).flatten().tolist()) for a in kept.values()}
