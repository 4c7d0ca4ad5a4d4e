"""Adapters load from three forms, go round bit-exactly, and are refused with all reasons."""

import json
import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from golden import GOLDEN, base_model
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_model

import deltamem_mlx as dm
from deltamem_mlx.adapters import loading
from deltamem_mlx.adapters.drafts import load_draft
from deltamem_mlx.adapters.files import write_copy
from deltamem_mlx.adapters.loading import base_model_of, fingerprint
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.model.fingerprint import fingerprints_of
from deltamem_mlx.model.patch import set_base_model

LONG = GOLDEN / "tsw_qo_long" / "adapter"
TOKENS = mx.array([[5, 9, 33, 80, 12, 7, 44, 8]])
NAMES = [
    *("beta_bias", "beta_proj", "delta_o_proj", "delta_q_proj"),
    *("memory_k_proj", "memory_q_proj", "memory_v_proj"),
]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    shutil.copytree(LONG, folder, ignore=shutil.ignore_patterns("*.pt"))
    return folder


def tensors(folder: Path) -> dict[str, np.ndarray]:
    npz = folder / "delta_mem_adapter_mlx.npz"
    if npz.exists():
        with np.load(npz) as arrays:
            return {name: arrays[name] for name in arrays.files}
    return {k: np.array(v) for k, v in mx.load(str(folder / "adapters.safetensors")).items()}


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(a[k].tobytes() == b[k].tobytes() for k in a)


def test_revision_of_a_model_is_the_one_that_is_loaded(
    qwen3_tiny: Path, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, files = [], loading.read(published)
    monkeypatch.setattr(loading, "resolve", lambda name, **_: asked.append(name) or qwen3_tiny)
    model, tokenizer = dm.load("user/repo", files, revision="v1")
    assert base_model_of(model)["name"] == "user/repo"
    dm.load("user/repo@v2", revision="v1")
    dm.load("user/repo", revision=None)
    dm.load(str(qwen3_tiny), revision="v1")
    dm.load(qwen3_tiny, revision="v1")
    load_draft("user/draft", model, tokenizer, revision="v1")
    assert asked == [
        *("user/repo@v1", "user/repo@v2", "user/repo", str(qwen3_tiny), qwen3_tiny),
        "user/draft@v1",
    ]


def test_names_of_a_saved_adapter(published: Path, tmp_path: Path) -> None:
    """Exactly the published key set: no tensors of heads that are off."""
    model = dm.load_adapter(base_model("models/qwen3-tiny"), published)
    dm.save_adapter(model, tmp_path / "saved")
    expected = {f"model.layers.{i}.self_attn.{name}" for i in range(3) for name in NAMES}
    assert tensors(tmp_path / "saved").keys() == expected
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["fine_tune_type"] == "delta_mem"
    assert config["delta_mem"]["delta_heads"] == ["q", "o"]
    assert config["base_model"] == {
        "name": None,
        "model_type": "qwen3",
        "num_layers": 3,
        "hidden_size": 32,
    }


def test_round_trips_are_bit_exact(published: Path, tmp_path: Path) -> None:
    original = tensors(published)
    source = published
    for i, form in enumerate(["mlx-lm", "published", "mlx-lm"]):
        dm.convert_adapter(source, tmp_path / f"c{i}", form=form)
        assert same(tensors(tmp_path / f"c{i}"), original)
        model = dm.load_adapter(base_model("models/qwen3-tiny"), tmp_path / f"c{i}")
        dm.save_adapter(model, tmp_path / f"s{i}", form=form)
        assert same(tensors(tmp_path / f"s{i}"), original)
        source = tmp_path / f"s{i}"
    config = dm.DeltaMemConfig.from_pretrained(source)
    assert config == dm.DeltaMemConfig.from_pretrained(published)


def test_all_forms_give_the_same_model(published: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the PyTorch form needs torch")
    torch_form = tmp_path / "torch"
    shutil.copytree(LONG, torch_form, ignore=shutil.ignore_patterns("*.npz"))
    dm.convert_adapter(torch_form, tmp_path / "mlx")
    assert same(tensors(tmp_path / "mlx"), tensors(published))
    logits = [
        dm.load_adapter(base_model("models/qwen3-tiny"), folder)(TOKENS)
        for folder in (published, torch_form, tmp_path / "mlx")
    ]
    assert mx.array_equal(logits[0], logits[1]) and mx.array_equal(logits[0], logits[2])


def test_bfloat16_of_the_pytorch_form(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="the PyTorch form needs torch")
    weights = torch.load(LONG / "delta_mem_adapter.pt", weights_only=True)
    half = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    shutil.copy(LONG / "delta_mem_config.json", tmp_path)
    torch.save(half, tmp_path / "delta_mem_adapter.pt")
    dm.convert_adapter(tmp_path, tmp_path / "mlx")
    for name, tensor in tensors(tmp_path / "mlx").items():
        assert np.array_equal(tensor, half[name].float().numpy())


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the PyTorch form needs torch")
    shutil.copy(LONG / "delta_mem_config.json", tmp_path)
    trace = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {trace}",)

    pickled = pickle.dumps(Attack())
    with zipfile.ZipFile(tmp_path / "delta_mem_adapter.pt", "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match=r"delta_mem_adapter\.pt cannot be read"):
        dm.load_adapter(base_model("models/qwen3-tiny"), tmp_path)
    (tmp_path / "delta_mem_adapter.pt").write_bytes(pickled)
    with pytest.raises(ValueError, match=r"delta_mem_adapter\.pt cannot be read"):
        dm.load_adapter(base_model("models/qwen3-tiny"), tmp_path)
    assert not trace.exists()


def test_an_object_array_in_an_npz_is_refused(published: Path) -> None:
    values = tensors(published)
    np.savez(published / "delta_mem_adapter_mlx.npz", **values, evil=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="cannot be read"):
        dm.load_adapter(base_model("models/qwen3-tiny"), published)


@pytest.mark.parametrize("form", ["published", "mlx-lm"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.98])
def test_truncated_weights(published: Path, tmp_path: Path, form: str, share: float) -> None:
    folder = tmp_path / "cut"
    dm.convert_adapter(published, folder, form=form)
    weights = next(p for p in folder.iterdir() if p.suffix in (".npz", ".safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ValueError, match=weights.name):
        dm.load_adapter(base_model("models/qwen3-tiny"), folder)


def test_truncated_pytorch_weights(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the PyTorch form needs torch")
    shutil.copy(LONG / "delta_mem_config.json", tmp_path)
    whole = (LONG / "delta_mem_adapter.pt").read_bytes()
    (tmp_path / "delta_mem_adapter.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"delta_mem_adapter\.pt cannot be read"):
        dm.load_adapter(base_model("models/qwen3-tiny"), tmp_path)


def refused(folder: Path, model: str = "models/qwen3-tiny") -> str:
    """The message with which ``folder`` is refused; the model stays as it was."""
    plain = base_model(model)
    names, kind = [n for n, _ in tree_flatten(plain.parameters())], type(plain)
    with pytest.raises(ValueError) as error:
        dm.load_adapter(plain, folder)
    assert type(plain) is kind and [n for n, _ in tree_flatten(plain.parameters())] == names
    return str(error.value)


def rewrite(folder: Path, change: dict[str, np.ndarray | None]) -> Path:
    values = tensors(folder) | change
    kept = {name: value for name, value in values.items() if value is not None}
    np.savez(folder / "delta_mem_adapter_mlx.npz", **kept)
    return folder


def test_every_mismatch_is_listed_at_once(published: Path) -> None:
    prefix = "model.layers"
    change = {
        f"{prefix}.0.self_attn.delta_q_proj": np.zeros((64, 4), np.float32),
        f"{prefix}.1.self_attn.beta_bias": None,
        f"{prefix}.5.self_attn.beta_bias": np.zeros(8, np.float32),
        f"{prefix}.2.self_attn.surprise": np.zeros(8, np.float32),
    }
    message = refused(rewrite(published, change))
    assert "model.layers.0.self_attn.delta_q_proj: adapter [64, 4], model [64, 8]" in message
    assert "model.layers.1.self_attn.beta_bias: missing in the adapter" in message
    assert "model.layers.5.self_attn.beta_bias: the model has 3 layers" in message
    assert "model.layers.2.self_attn.surprise: not used" in message


def test_nan_is_refused(published: Path) -> None:
    bad = np.full((8, 32), np.nan, np.float32)
    message = refused(rewrite(published, {"model.layers.1.self_attn.memory_k_proj": bad}))
    assert "NaN or infinite values in:\n  model.layers.1.self_attn.memory_k_proj" in message


def test_what_would_be_refused_does_not_replace_a_good_adapter(
    published: Path, tmp_path: Path
) -> None:
    model, saved = dm.load_adapter(base_model("models/qwen3-tiny"), published), tmp_path / "saved"
    dm.save_adapter(model, saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    attention = model.layers[1].self_attn
    attention.delta_q_proj = mx.full(attention.delta_q_proj.shape, 1e6)
    dm.save_adapter(model, tmp_path / "large")
    with pytest.raises(ValueError, match=r"NaN or infinite .*65,504\) in .*1\.self_attn\.delta_q"):
        dm.convert_adapter(tmp_path / "large", saved, dtype=mx.float16)
    attention.delta_q_proj = attention.delta_q_proj * float("nan")
    with pytest.raises(ValueError, match=r"nothing was written: .* values in .*\.delta_q_proj\."):
        dm.save_adapter(model, saved)
    with pytest.raises(ValueError, match="nothing was written"):
        write_copy(loading.adapter_of(model), saved / "0000100_adapters.safetensors")
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_an_adapter_is_not_converted_to_a_type_that_no_form_has(
    published: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"dtype is mlx\.core\.bfloat16, expected mx\.float32 or"):
        dm.convert_adapter(published, tmp_path / "out", dtype=mx.bfloat16)
    assert not (tmp_path / "out").exists()


def test_an_adapter_for_another_model(published: Path) -> None:
    message = refused(published, "models/smollm3-tiny")
    assert "model.layers.0.self_attn.delta_q_proj: adapter [64, 8], model [32, 8]" in message
    assert "model.layers.3.self_attn.beta_bias: missing" in message
    assert "Load the model it was trained on" in message


def test_a_long_list_of_misfits_is_cut(published: Path) -> None:
    """Of every kind the first few, and how many more: a real adapter has hundreds of tensors."""
    extra = {f"model.layers.{i}.self_attn.beta_bias": np.zeros(8, np.float32) for i in range(3, 40)}
    lines = refused(rewrite(published, extra), "models/smollm3-tiny").splitlines()
    assert len(lines) < 16
    [beyond] = [i for i, line in enumerate(lines) if "model.layers.10.self_attn" in line]
    assert lines[beyond].endswith("beta_bias: the model has 4 layers")
    assert lines[-2].strip() == "and 32 more"


def test_target_layers_beyond_the_model(published: Path) -> None:
    file = published / "delta_mem_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_layers": [40]}))
    assert "target_layers [40]: the model has layers 0 to 2" in refused(published)


def test_a_lora_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {}})
    )
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), {"a": mx.zeros(1)})
    assert "of type 'lora', expected 'delta_mem'" in refused(tmp_path)


def test_missing_files(tmp_path: Path, published: Path) -> None:
    plain = base_model("models/qwen3-tiny")
    with pytest.raises(FileNotFoundError, match="No folder"):
        dm.load_adapter(plain, tmp_path / "nowhere")
    (published / "delta_mem_adapter_mlx.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected adapters\.safetensors"):
        dm.load_adapter(plain, published)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="neither"):
        dm.load_adapter(plain, tmp_path / "empty")


def test_a_second_adapter_needs_a_detach(published: Path) -> None:
    model = dm.load_adapter(base_model("models/qwen3-tiny"), published)
    with pytest.raises(ValueError, match="has a δ-mem adapter already"):
        dm.load_adapter(model, published)
    dm.load_adapter(dm.detach(model), published)
    with pytest.raises(ValueError, match="no δ-mem adapter"):
        dm.detach(dm.detach(model))


def test_attaching_twice_is_refused_in_the_same_words(published: Path) -> None:
    model = dm.load_adapter(base_model("models/qwen3-tiny"), published)
    said = []
    for again in (
        lambda: dm.load_adapter(model, published),
        lambda: dm.attach(model, dm.DeltaMemConfig()),
    ):
        with pytest.raises(ValueError) as error:
            again()
        said.append(str(error.value))
    assert (
        said[0]
        == said[1]
        == ("The model has a δ-mem adapter already: call dm.detach(model) first.")
    )


def test_an_unknown_form(published: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="form is 'gguf', expected one of mlx-lm, published"):
        dm.convert_adapter(published, tmp_path / "out", form="gguf")
    assert not (tmp_path / "out").exists()


def test_new_weights_act_at_once(published: Path) -> None:
    """Packed copies of the weights never outlive the weights."""
    model = dm.load_adapter(base_model("models/qwen3-tiny"), published)
    before = model(TOKENS)
    attention = model.layers[0].self_attn
    attention.delta_q_proj = attention.delta_q_proj * 2
    after = model(TOKENS)
    assert not mx.array_equal(before, after)
    attention.delta_q_proj = attention.delta_q_proj / 2
    assert mx.array_equal(before, model(TOKENS))


def test_a_base_without_floating_weights_in_its_attention(tmp_path: Path) -> None:
    """mxfp4 has scales of bytes, and a llama attention no norms."""
    model = tiny_model("llama", intermediate_size=64).apply(lambda x: x.astype(mx.bfloat16))
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    dm.attach(model, dm.DeltaMemConfig(output_init="random"), seed=0)
    dm.save_adapter(model, tmp_path)
    expected = model(TOKENS)
    assert mx.array_equal(dm.load_adapter(dm.detach(model), tmp_path)(TOKENS), expected)


def test_how_a_local_base_is_named(qwen3_tiny: Path, published: Path, tmp_path: Path) -> None:
    """An adapter names the folder, as mlx-lm's do; a memory file tells nothing of the machine."""
    model, _ = dm.load(str(qwen3_tiny), str(published))
    dm.save_adapter(model, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert config["base_model"]["name"] == str(qwen3_tiny)
    dm.save_memory(tmp_path / "m.safetensors", make_prompt_cache(model), model)
    assert read_memory(tmp_path / "m.safetensors").base_model["name"] == "qwen3-tiny"


@pytest.mark.parametrize("name", ["~/clients/acme", "/home/me/clients/acme", "./acme"])
def test_a_memory_file_says_no_folder_of_this_machine(name: str, tmp_path: Path) -> None:
    """Whether it is there any more or not."""
    model = dm.attach(tiny_model(), dm.DeltaMemConfig())
    set_base_model(model, name)
    dm.save_memory(tmp_path / "m.safetensors", make_prompt_cache(model), model)
    assert read_memory(tmp_path / "m.safetensors").base_model["name"] == "acme"
    assert b"clients" not in (tmp_path / "m.safetensors").read_bytes()


def test_settings_that_do_nothing_do_not_make_another_adapter(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor do settings that a later version adds, in what either version has saved."""
    adapter, idle = loading.read(published), {"online_gain": 0.3, "delta_scale_max": 5.0}
    first = fingerprints_of(adapter.config, adapter.tensors)
    other = fingerprints_of(replace(adapter.config, **idle), adapter.tensors)
    assert other.now == first.now and other.before != first.before
    assert fingerprints_of(replace(adapter.config, alpha=1.0), adapter.tensors).now != first.now

    @dataclass(frozen=True)
    class Later(dm.DeltaMemConfig):
        brand_new: float = 1.0

    later = Later(**adapter.config.to_dict())
    monkeypatch.setattr("deltamem_mlx.model.fingerprint.DeltaMemConfig", Later)
    assert fingerprints_of(later, adapter.tensors) == first
    assert fingerprints_of(replace(later, brand_new=2.0), adapter.tensors).now != first.now


def test_fingerprints(published: Path) -> None:
    model = dm.load_adapter(base_model("models/qwen3-tiny"), published)
    first = fingerprint(model)
    assert first == fingerprint(dm.load_adapter(base_model("models/qwen3-tiny"), published))
    attention = model.layers[2].self_attn
    attention.beta_bias = attention.beta_bias + 1e-6
    assert fingerprint(model) != first


def test_load_gives_model_and_tokenizer(qwen3_tiny: Path, published: Path) -> None:
    model, tokenizer = dm.load(str(qwen3_tiny), str(published))
    assert tokenizer.chat_template
    plain, _ = dm.load(str(qwen3_tiny))
    assert mx.array_equal(plain(TOKENS), base_model("models/qwen3-tiny")(TOKENS))
    assert not mx.array_equal(model(TOKENS), plain(TOKENS))
    assert make_prompt_cache(model)[0].memory.rank == 8


class TestRegister:
    def test_mlx_lm_loads_our_adapters(self, qwen3_tiny: Path, published: Path) -> None:
        expected = dm.load(str(qwen3_tiny), str(published))[0](TOKENS)
        dm.register()
        dm.register()
        try:
            model, _ = mlx_lm_load(str(qwen3_tiny), adapter_path=str(published))
            assert mx.array_equal(model(TOKENS), expected)
            assert dm.memory_state(make_prompt_cache(model))
        finally:
            dm.unregister()
        dm.unregister()
        with pytest.raises(FileNotFoundError):
            mlx_lm_load(str(qwen3_tiny), adapter_path=str(published))

    def test_lora_adapters_load_as_before(self, qwen3_tiny: Path, tmp_path: Path) -> None:
        from mlx_lm.tuner.utils import linear_to_lora_layers

        settings = {"rank": 2, "scale": 4.0, "dropout": 0.0}
        lora = base_model("models/qwen3-tiny")
        lora.freeze()
        linear_to_lora_layers(lora, 2, settings)
        weights = dict(tree_flatten(lora.trainable_parameters()))
        weights = {
            name: mx.random.normal(w.shape, key=mx.random.key(1)) for name, w in weights.items()
        }
        mx.save_safetensors(str(tmp_path / "adapters.safetensors"), weights)
        config = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": settings}
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        expected = mlx_lm_load(str(qwen3_tiny), adapter_path=str(tmp_path))[0](TOKENS)
        dm.register()
        try:
            model, _ = mlx_lm_load(str(qwen3_tiny), adapter_path=str(tmp_path))
        finally:
            dm.unregister()
        assert mx.array_equal(model(TOKENS), expected)
        assert not mx.array_equal(expected, base_model("models/qwen3-tiny")(TOKENS))

    def test_mlx_lm_refuses_ours_without_it(self, qwen3_tiny: Path, tmp_path: Path) -> None:
        dm.convert_adapter(LONG, tmp_path / "mlx")
        with pytest.raises((ValueError, KeyError, AttributeError)):
            mlx_lm_load(str(qwen3_tiny), adapter_path=str(tmp_path / "mlx"))
