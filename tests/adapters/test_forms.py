"""A folder holds one adapter: its settings and weights are of one form and of one writing."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.adapters.files import read_adapter, read_copy, write_copy
from deltamem_mlx.adapters.publish import prepare
from deltamem_mlx.forms import ADAPTER_NAMES, MLX_LM, PUBLISHED, files_there, is_delta_mem
from deltamem_mlx.model.patch import set_base_model

FORMS = {"mlx-lm": MLX_LM, "published": PUBLISHED}
Adapters = Callable[..., Path]


class Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


@pytest.fixture
def adapters(tmp_path: Path) -> Adapters:
    """Writes an adapter with these settings, and returns its folder."""

    def write(name: str, seed: int = 0, form: str = "mlx-lm", **settings: object) -> Path:
        model = dm.attach(tiny_model(), dm.DeltaMemConfig(**settings), seed=seed)
        dm.save_adapter(model, tmp_path / name, form=form)
        return tmp_path / name

    return write


def alpha_of(folder: Path) -> float:
    return read_adapter(folder).config.alpha


def whole(folder: Path) -> tuple[float, float]:
    """A setting and a weight, by which the tests tell adapters apart."""
    adapter = read_adapter(folder)
    weight = adapter.tensors["model.layers.0.self_attn.memory_q_proj"][0, 0]
    return adapter.config.alpha, float(weight.item())


@pytest.mark.parametrize(("old", "new"), permutations(FORMS, 2))
def test_an_overwritten_adapter_of_another_form_is_gone(
    adapters: Adapters, old: str, new: str
) -> None:
    first = adapters("first", form=old, alpha=8.0)
    second = adapters("second", seed=1, alpha=64.0, state_update_mode="no_lambda")
    with pytest.raises(FileExistsError, match="in another form"):
        dm.convert_adapter(second, first, form=new)
    assert alpha_of(first) == 8.0
    dm.convert_adapter(second, first, form=new, overwrite=True)
    assert files_there(first) == FORMS[new].files
    assert whole(first) == whole(second)


@pytest.mark.parametrize("form", FORMS)
def test_two_adapters_in_a_folder_are_refused_by_every_reader(
    adapters: Adapters, tmp_path: Path, form: str
) -> None:
    both = adapters("both", form=form)
    other = adapters("other", form=next(f for f in FORMS if f != form))
    shutil.copytree(other, both, dirs_exist_ok=True)
    readers: list[Callable[[], object]] = [
        lambda: dm.load_adapter(tiny_model(), both),
        lambda: dm.DeltaMemConfig.from_pretrained(both),
        lambda: dm.convert_adapter(both, tmp_path / "converted"),
        lambda: prepare(both, "user/adapter"),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=r"files of two adapters .* Remove those of one"):
            read()
    model = dm.attach(tiny_model(), dm.DeltaMemConfig())
    with pytest.raises(FileExistsError, match="in another form"):
        dm.save_adapter(model, both)
    assert is_delta_mem(both)


@pytest.mark.parametrize("stray", ADAPTER_NAMES)
@pytest.mark.parametrize("form", FORMS)
def test_a_single_file_of_another_form_changes_nothing(
    adapters: Adapters, form: str, stray: str
) -> None:
    folder = adapters("folder", form=form, alpha=8.0)
    other = adapters("other", seed=1, form=next(f for f in FORMS if f != form), alpha=64.0)
    if stray in FORMS[form].files or not (other / stray).exists():
        pytest.skip("a file of the same form")
    expected = whole(folder)
    shutil.copy(other / stray, folder)
    assert whole(folder) == expected
    assert dm.DeltaMemConfig.from_pretrained(folder).alpha == 8.0
    assert set(prepare(folder, "user/adapter").files) == {*FORMS[form].files, "README.md"}


def test_settings_of_one_form_and_weights_of_another_are_no_adapter(adapters: Adapters) -> None:
    folder = adapters("folder")
    published = adapters("published", form="published")
    (folder / MLX_LM.weights).unlink()
    shutil.copy(published / PUBLISHED.weights, folder)
    with pytest.raises(FileNotFoundError, match=r"no weights for it: expected adapters\.safetens"):
        read_adapter(folder)


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_adapter_of_ours_is_not_replaced(tmp_path: Path, form: str) -> None:
    (tmp_path / MLX_LM.config).write_text('{"fine_tune_type": "lora", "num_layers": 2}')
    mx.save_safetensors(str(tmp_path / MLX_LM.weights), {"x": mx.zeros(1)})
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model = dm.attach(tiny_model(), dm.DeltaMemConfig())
    with pytest.raises(FileExistsError, match=r"no δ-mem adapter .* Give another folder"):
        dm.save_adapter(model, tmp_path, form=form)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_weights_without_settings_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / MLX_LM.weights).write_bytes(b"somebody's")
    model = dm.attach(tiny_model(), dm.DeltaMemConfig())
    with pytest.raises(FileExistsError, match="nothing was written"):
        dm.save_adapter(model, tmp_path)
    assert (tmp_path / MLX_LM.weights).read_bytes() == b"somebody's"


def test_an_adapter_of_ours_is_saved_again_in_the_same_folder(adapters: Adapters) -> None:
    assert alpha_of(adapters("folder", alpha=8.0)) == 8.0
    assert alpha_of(adapters("folder", alpha=16.0, seed=1)) == 16.0


def stopped_writings(source: Path, folder: Path, form: str) -> Iterator[None]:
    """Converts ``source`` to ``folder``, stopped at each step of writing; then to its end."""
    steps = [0]
    real = {name: getattr(os, name) for name in ("replace", "unlink", "open")}

    def stopping(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            steps[0] -= 1
            if steps[0] == 0:
                raise Stopped
            return real[name](*args, **kwargs)

        return call

    for step in range(1, 100):
        steps[0] = step
        with pytest.MonkeyPatch.context() as patched:
            for name in real:
                patched.setattr(os, name, stopping(name))
            try:
                dm.convert_adapter(source, folder, form=form, overwrite=True)
                return
            except Stopped:
                pass
        yield


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("checksums", [True, False])
def test_a_stopped_overwriting_leaves_the_old_or_the_new_adapter_whole(
    adapters: Adapters, tmp_path: Path, form: str, checksums: bool
) -> None:
    old, new = adapters("old", form=form, alpha=8.0), adapters("new", seed=1, alpha=64.0)
    if not checksums:
        as_before(old, form)
    found = {whole(old), whole(new)}
    target = tmp_path / "target"
    shutil.copytree(old, target)
    seen = set()
    for _ in stopped_writings(new, target, form):
        seen.add(whole(target))
        shutil.rmtree(target)
        shutil.copytree(old, target)
    assert seen == found and whole(target) == whole(new)


@pytest.mark.parametrize("form", FORMS)
def test_a_stopped_overwriting_of_another_form_loses_nothing(
    adapters: Adapters, tmp_path: Path, form: str
) -> None:
    """Until the old one is removed both are there, which is said."""
    old = adapters("old", form=next(f for f in FORMS if f != form), alpha=8.0)
    new = adapters("new", seed=1, alpha=64.0)
    target = tmp_path / "target"
    shutil.copytree(old, target)
    for _ in stopped_writings(new, target, form):
        try:
            assert whole(target) in {whole(old), whole(new)}
        except ValueError as error:
            assert "the files of two adapters" in str(error)
    assert whole(target) == whole(new) and files_there(target) == FORMS[form].files


def as_before(folder: Path, form: str) -> None:
    """Writes the files again as version 0.1.0 did, without checksums."""
    adapter = read_adapter(folder)
    config = folder / FORMS[form].config
    values = json.loads(config.read_text())
    values.pop("weights_sha256", None)
    config.write_text(json.dumps(values))
    if form == "published":
        arrays = {name: np.array(tensor) for name, tensor in adapter.tensors.items()}
        np.savez(folder / PUBLISHED.weights, **arrays)
    else:
        mx.save_safetensors(str(folder / MLX_LM.weights), adapter.tensors, {"format": "mlx"})


@pytest.mark.parametrize("form", FORMS)
def test_adapters_without_a_checksum_load(adapters: Adapters, form: str) -> None:
    folder = adapters("folder", form=form)
    expected = whole(folder)
    as_before(folder, form)
    assert whole(folder) == expected


@pytest.mark.parametrize("file", [MLX_LM.config, MLX_LM.weights])
@pytest.mark.parametrize("same_settings", [True, False])
def test_a_file_of_another_adapter_is_noticed(
    adapters: Adapters, file: str, same_settings: bool
) -> None:
    folder = adapters("folder", alpha=8.0)
    other = adapters("other", seed=1, alpha=8.0 if same_settings else 64.0)
    shutil.copy(other / file, folder / file)
    with pytest.raises(ValueError, match="were not written together"):
        read_adapter(folder)


def test_weights_that_lost_their_checksum_are_not_taken_beside_settings_that_name_one(
    adapters: Adapters,
) -> None:
    folder, other = adapters("folder"), adapters("other", seed=1)
    settings = (folder / MLX_LM.config).read_text()
    as_before(other, "mlx-lm")
    shutil.copy(other / MLX_LM.weights, folder)
    with pytest.raises(ValueError, match=r"has no checksum, .* remove 'weights_sha256' from"):
        read_adapter(folder)
    copy = folder / "0000003_adapters.safetensors"
    shutil.copy(folder / MLX_LM.weights, copy)
    assert read_copy(copy).tensors and (folder / MLX_LM.config).read_text() == settings


@pytest.mark.parametrize("file", [PUBLISHED.config, PUBLISHED.weights])
def test_in_the_published_form_other_settings_are_noticed(adapters: Adapters, file: str) -> None:
    folder = adapters("folder", form="published", alpha=8.0)
    shutil.copy(adapters("other", form="published", alpha=64.0) / file, folder / file)
    with pytest.raises(ValueError, match="were not written together"):
        read_adapter(folder)


def test_settings_may_be_edited_by_hand(adapters: Adapters) -> None:
    folder = adapters("folder")
    values = json.loads((folder / MLX_LM.config).read_text())
    values["delta_mem"]["alpha"] = 3.0
    (folder / MLX_LM.config).write_text(json.dumps(values))
    assert alpha_of(folder) == 3.0


def test_a_numbered_copy_may_be_put_in_the_place_of_the_weights(adapters: Adapters) -> None:
    folder = adapters("folder")
    earlier = read_adapter(adapters("earlier", seed=1))
    write_copy(earlier, folder / "0000100_adapters.safetensors")
    shutil.copy(folder / "0000100_adapters.safetensors", folder / MLX_LM.weights)
    expected = earlier.tensors["model.layers.1.self_attn.memory_k_proj"]
    found = read_adapter(folder).tensors["model.layers.1.self_attn.memory_k_proj"]
    assert mx.array_equal(found, expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_bit_that_slips_is_noticed_or_changes_nothing(adapters: Adapters, form: str) -> None:
    """The zip format has fields that nobody reads: names of systems, times."""
    folder = adapters("folder", form=form)
    before = read_adapter(folder)
    file = folder / FORMS[form].weights
    data, noticed = file.read_bytes(), 0
    for place in range(0, len(data), len(data) // 60):
        slipped = bytearray(data)
        slipped[place] ^= 1 << place % 8
        file.write_bytes(bytes(slipped))
        try:
            after = read_adapter(folder)
        except ValueError as error:
            assert file.name in str(error)
            noticed += 1
        else:
            assert after.config == before.config
            assert all(mx.array_equal(x, before.tensors[name]) for name, x in after.tensors.items())
    assert noticed > 40


@pytest.mark.parametrize("checksums", [True, False])
def test_four_bytes_that_slip_in_are_noticed(adapters: Adapters, checksums: bool) -> None:
    folder = adapters("folder")
    if not checksums:
        as_before(folder, "mlx-lm")
    file = folder / MLX_LM.weights
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    file.write_bytes(data[:start] + b"\0\0\0\0" + data[start:])
    with pytest.raises(ValueError, match=r"adapters\.safetensors cannot be read"):
        read_adapter(folder)


def test_a_path_with_a_tilde_is_expanded(
    adapters: Adapters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = adapters("source")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    dm.convert_adapter(source, "~/converted")
    dm.save_adapter(dm.load_adapter(tiny_model(), "~/converted"), "~/saved")
    assert whole(tmp_path / "home" / "saved") == whole(source)


@pytest.mark.parametrize("copy", [True, False])
def test_weights_do_not_name_the_folders_of_this_machine(tmp_path: Path, copy: bool) -> None:
    model = dm.attach(tiny_model(), dm.DeltaMemConfig())
    (tmp_path / "secret" / "base").mkdir(parents=True)
    set_base_model(model, str(tmp_path / "secret" / "base"))
    dm.save_adapter(model, tmp_path)
    write_copy(read_adapter(tmp_path), tmp_path / "0000001_adapters.safetensors")
    file = tmp_path / ("0000001_adapters.safetensors" if copy else MLX_LM.weights)
    assert b"secret" not in file.read_bytes()
    assert read_adapter(tmp_path).base_name == str(tmp_path / "secret" / "base")
