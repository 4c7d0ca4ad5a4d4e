"""`deltamem-mlx convert`: the same numbers in another form."""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import FIXTURES, RunCli
from golden import base_model
from mlx.utils import tree_flatten
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app

ADAPTER = FIXTURES / "golden" / "tsw_qo" / "adapter"


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["convert", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in dict(mx.load(str(path))).items()}


def test_there_and_back_keeps_every_bit(tmp_path: Path) -> None:
    there = call(ADAPTER, tmp_path / "a")
    files = [tmp_path / "a" / "adapter_config.json", tmp_path / "a" / "adapters.safetensors"]
    assert (there.exit_code, there.stdout.split()) == (0, list(map(str, files)))
    assert call(tmp_path / "a", tmp_path / "b", "--form", "published").exit_code == 0
    before = tensors(ADAPTER / "delta_mem_adapter_mlx.npz")
    for path in (files[1], tmp_path / "b" / "delta_mem_adapter_mlx.npz"):
        after = tensors(path)
        assert after.keys() == before.keys()
        assert all(np.array_equal(after[name], before[name]) for name in before)
    configs = [dm.DeltaMemConfig.from_pretrained(f) for f in (ADAPTER, tmp_path / "b")]
    assert configs[0] == configs[1]


def test_a_name_that_the_published_form_cannot_keep_is_said(tmp_path: Path) -> None:
    call(ADAPTER, tmp_path / "a")
    config = tmp_path / "a" / "adapter_config.json"
    values = json.loads(config.read_text())
    assert "Base" not in call(tmp_path / "a", tmp_path / "b", "--form", "published").stderr
    config.write_text(json.dumps(values | {"base_model": {"name": "user/Base"}}))
    assert "user/Base" in call(tmp_path / "a", tmp_path / "c", "--form", "published").stderr
    kept = call(tmp_path / "a", tmp_path / "d")
    assert kept.stderr == ""
    assert json.loads((tmp_path / "d" / config.name).read_text())["base_model"] == {
        "name": "user/Base"
    }


@pytest.mark.parametrize("form", ["mlx-lm", "published"])
def test_numbers_can_be_rounded_to_half_the_size(tmp_path: Path, form: str) -> None:
    call(ADAPTER, tmp_path / "a")
    assert call(tmp_path / "a", tmp_path / "b", "--form", form, "--dtype", "float16").exit_code == 0
    name = {"mlx-lm": "adapters.safetensors", "published": "delta_mem_adapter_mlx.npz"}[form]
    before = tensors(tmp_path / "a" / "adapters.safetensors")
    after = tensors(tmp_path / "b" / name)
    assert {x.dtype for x in after.values()} == {np.dtype(np.float16)}
    assert all(np.array_equal(after[n], before[n].astype(np.float16)) for n in before)
    assert call(tmp_path / "b", tmp_path / "c", "--dtype", "bfloat16").exit_code == 2
    model = dm.load_adapter(base_model("models/qwen3-tiny"), tmp_path / "b")
    trained = dict(tree_flatten(model.trainable_parameters()))
    assert trained and {x.dtype for x in trained.values()} == {mx.float32}


def test_pytorch_form(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    source = tmp_path / "source"
    source.mkdir()
    shutil.copy(ADAPTER / "delta_mem_config.json", source)
    before = tensors(ADAPTER / "delta_mem_adapter_mlx.npz")
    half = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in before.items()}
    # The authors' files hold heads that are off, too, as zeros.
    off = {name.replace("_q_", "_k_"): x * 0 for name, x in half.items() if "delta_q" in name}
    torch.save(half | off, source / "delta_mem_adapter.pt")
    assert call(source, tmp_path / "out").exit_code == 0
    after = tensors(tmp_path / "out" / "adapters.safetensors")
    assert after.keys() == before.keys()
    assert all(np.array_equal(after[name], half[name].float().numpy()) for name in before)


def test_json(tmp_path: Path) -> None:
    found = json.loads(call(ADAPTER, tmp_path / "a", "--json").stdout)
    assert found == {
        "folder": str(tmp_path / "a"),
        "form": "mlx-lm",
        "files": ["adapter_config.json", "adapters.safetensors"],
    }


def test_overwrites_only_when_told(tmp_path: Path) -> None:
    call(ADAPTER, tmp_path)
    (tmp_path / "adapters.safetensors").write_bytes(b"mine")
    done = call(ADAPTER, tmp_path)
    assert done.exit_code == 2
    assert "--overwrite" in done.stderr
    assert (tmp_path / "adapters.safetensors").read_bytes() == b"mine"
    assert call(ADAPTER, tmp_path, "--overwrite").exit_code == 0
    assert tensors(tmp_path / "adapters.safetensors")


def test_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for args, code, said in (
        ([ADAPTER], 2, "FOLDER"),
        ([ADAPTER, tmp_path / "file"], 2, "is a file"),
        ([ADAPTER, tmp_path / "a", "--form", "onnx"], 2, "onnx"),
        ([tmp_path / "absent", tmp_path / "a"], 1, "absent"),
        ([FIXTURES / "models" / "qwen3-tiny", tmp_path / "a"], 1, "qwen3-tiny"),
    ):
        done = call(*args)
        assert (done.exit_code, done.stdout) == (code, ""), args
        assert done.stderr.startswith("Error: ")
        assert said in done.stderr
    assert not (tmp_path / "a").exists()


def test_lora_in_a_process(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"fine_tune_type": "lora", "rank": 8}')
    done = run_cli("convert", tmp_path, tmp_path / "out")
    assert (done.returncode, done.stdout) == (1, "")
    assert "'lora'" in done.stderr
    assert len(done.stderr.splitlines()) == 1
