"""What each of mlx-lm's own tools does with a memory: the rows of docs/mlx-lm-tools.md."""

import importlib
import json
import sys
import threading
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tuner import TrainingArgs, train
from mlx_lm.tuner.datasets import CacheDataset, TextDataset
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import quantize_model, save
from tiny import strong_pair, tiny_model_folder

import deltamem_mlx as dm

ROWS = (Path(__file__).parents[2] / "docs" / "mlx-lm-tools.md").read_text()
LORA = {"rank": 2, "scale": 8.0, "dropout": 0.0}
TOKENS = mx.array([[5, 9, 33, 80, 12, 7, 44, 8]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("tools") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "adapter"
    dm.save_adapter(strong_pair(base)[0], folder)
    return folder


@pytest.fixture
def registered() -> Iterator[None]:
    dm.register()
    yield
    dm.unregister()


@pytest.fixture
def tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], registered: None
) -> Callable[..., str]:
    """Runs one of mlx-lm's commands in this process, and gives what it printed."""

    def run(name: str, *args: str | Path) -> str:
        module = importlib.import_module(f"mlx_lm.{name}")
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        module.main()
        return capsys.readouterr().out

    return run


def says(sentence: str) -> str:
    """A sentence that the table promises."""
    assert sentence in " ".join(ROWS.split())
    return sentence


def same(a: nn.Module, b: nn.Module) -> bool:
    return bool(mx.array_equal(a(TOKENS), b(TOKENS)))


def test_generate_answers_with_the_memory(tool: Callable[..., str], base: Path, adapter: Path):
    args = ("--model", base, "--prompt", "anna lives in oslo", "--max-tokens", "8")
    with_memory = tool("generate", *args, "--adapter-path", adapter, "--verbose", "False")
    model, tokenizer = dm.load(str(base), adapter)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "anna lives in oslo"}], add_generation_prompt=True
    )
    expected = mlx_lm.generate(model, tokenizer, prompt, max_tokens=8)
    assert with_memory.strip() == expected.strip()
    assert with_memory != tool("generate", *args, "--verbose", "False")


def test_chat_goes_on_with_the_memory(
    tool: Callable[..., str], base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = iter(["anna lives in oslo", "where?", "q"])
    monkeypatch.setattr("builtins.input", lambda _="": next(lines))
    said = tool("chat", "--model", base, "--adapter-path", adapter, "--max-tokens", "4")
    assert said and not list(lines)


def test_the_server_answers_with_the_memory(
    base: Path, adapter: Path, registered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm import server

    argv = ["server", "--model", str(base), "--adapter-path", str(adapter)]
    monkeypatch.setattr(sys, "argv", argv)
    made: list[server.ModelProvider] = []
    monkeypatch.setattr(server, "run", lambda host, port, provider: made.append(provider))
    server.main()
    generator = server.ResponseGenerator(made[0], server.LRUPromptCache(4))
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(server.APIHandler, generator))
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    body = {"messages": [{"role": "user", "content": "anna lives in oslo"}], "max_tokens": 8}
    try:
        request = urllib.request.Request(
            f"http://127.0.0.1:{http.server_port}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as response:
            answer = json.load(response)["choices"][0]["message"]["content"]
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
        generator.stop_and_join()
    model, tokenizer = dm.load(str(base), adapter)
    prompt = tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
    assert answer.strip() == mlx_lm.generate(model, tokenizer, prompt, max_tokens=8).strip()


def test_cache_prompt_keeps_the_memory_with_the_prompt(
    tool: Callable[..., str], base: Path, adapter: Path, tmp_path: Path
) -> None:
    file = tmp_path / "cache.safetensors"
    pair = ("--model", base, "--adapter-path", adapter)
    tool("cache_prompt", *pair, "--prompt", "anna lives in oslo", "--prompt-cache-file", file)
    rest = ("--prompt", "where?", "--max-tokens", "6", "--verbose", "False")
    answer = tool("generate", "--adapter-path", adapter, "--prompt-cache-file", file, *rest)
    assert answer.strip()
    with pytest.raises(ValueError, match="the model that uses it has none"):
        tool("generate", "--prompt-cache-file", file, *rest)


def test_batch_generate_answers_each_as_it_would_alone(base: Path, adapter: Path) -> None:
    model, tokenizer = dm.load(str(base), adapter)
    prompts = [tokenizer.encode(text) for text in ("anna lives in oslo", "ben is a doctor now")]
    together = mlx_lm.batch_generate(model, tokenizer, prompts, max_tokens=6).texts
    assert together == [mlx_lm.generate(model, tokenizer, p, max_tokens=6) for p in prompts]


def test_perplexity_is_that_of_the_model_with_an_empty_memory(base: Path, adapter: Path) -> None:
    from mlx_lm.perplexity import eval_ppl

    model, _ = dm.load(str(base), adapter)
    data = mx.random.randint(0, 96, (4, 16), key=mx.random.key(0))
    with_memory = eval_ppl(model, data)[0]
    assert np.isfinite(with_memory) and with_memory != eval_ppl(dm.detach(model), data)[0]


def test_evaluate_scores_with_the_memory(base: Path, adapter: Path) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    from mlx_lm.evaluate import MLXLM

    scorer = MLXLM(str(base))
    plain = scorer._score_fn([[5, 9, 33, 80]])[0]
    dm.load_adapter(scorer._model, adapter)
    assert not mx.array_equal(scorer._score_fn([[5, 9, 33, 80]])[0], plain)


def test_benchmark_measures_the_model_that_it_is_given(
    tool: Callable[..., str], base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = importlib.import_module("mlx_lm.benchmark")
    monkeypatch.setattr(benchmark, "load", partial(_load_with, adapter))
    for batch in ("1", "2"):
        said = tool("benchmark", "--model", base, *["-p", "8", "-g", "4", "-n", "1"], "-b", batch)
        assert "Averages: prompt_tps=" in said


def _load_with(adapter: Path, model: str, **options: object) -> tuple:
    kept = {name: value for name, value in options.items() if name != "model_config"}
    return dm.load(model, adapter, **kept)


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("bits", [None, 4])
def test_a_memory_over_a_lora_or_dora(
    tmp_path: Path, kind: str, bits: int | None, registered: None
) -> None:
    """Trained by mlx-lm, loaded below a memory that was saved on its own."""
    folder = tiny_model_folder(tmp_path / "base", bits=bits, hidden_size=64)
    plain, _ = mlx_lm.load(str(folder))
    plain.freeze()
    linear_to_lora_layers(plain, 2, LORA, use_dora=kind == "dora")
    mx.random.seed(3)
    for name, value in tree_flatten(plain.trainable_parameters()):
        plain.load_weights([(name, mx.random.normal(value.shape))], strict=False)
    weights = dict(tree_flatten(plain.trainable_parameters()))
    (tmp_path / "lora").mkdir()
    mx.save_safetensors(str(tmp_path / "lora" / "adapters.safetensors"), weights)
    about = {"fine_tune_type": kind, "num_layers": 2, "lora_parameters": LORA}
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(about))
    dm.save_adapter(strong_pair(folder)[0], tmp_path / "memory")

    model, _ = dm.load(str(folder), tmp_path / "memory", adapter_path=str(tmp_path / "lora"))
    below, _ = mlx_lm.load(str(folder), adapter_path=str(tmp_path / "lora"))
    memory_only, _ = dm.load(str(folder), tmp_path / "memory")
    assert not same(model, below) and not same(model, memory_only)
    dm.save_adapter(model, tmp_path / "again")
    with pytest.warns(UserWarning, match=says("LoRA layers are frozen while it has a memory")):
        assert same(dm.load_adapter(below, tmp_path / "again"), model)
    assert same(dm.detach(model), dm.detach(below))


@pytest.mark.parametrize("init", ["base_slice", "base_slice_fixed"])
@pytest.mark.parametrize("dora", [False, True])
def test_a_fresh_memory_takes_the_weights_that_a_lora_makes(
    base: Path, init: str, dora: bool
) -> None:
    model, _ = mlx_lm.load(str(base))
    linear_to_lora_layers(model, 2, LORA, use_dora=dora)
    projection = model.layers[1].self_attn.q_proj
    projection.lora_b = mx.random.normal(projection.lora_b.shape)
    fused = projection.fuse(dequantize=True).weight
    with pytest.warns(UserWarning, match="LoRA layers are frozen"):
        dm.attach(model, dm.DeltaMemConfig(output_init=init, delta_heads=("q", "o")))
    found = model.layers[1].self_attn.delta_q_proj
    ratio = found / fused[:, : found.shape[1]]
    assert mx.allclose(ratio, ratio[:1], rtol=1e-4)


def test_mlx_lms_trainer_keeps_its_lora_apart_from_the_memory(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    model, tokenizer = dm.load(str(base), adapter)
    linear_to_lora_layers(model, 2, LORA)
    before = mx.array(model.layers[0].self_attn.memory_q_proj)
    rows = CacheDataset(TextDataset([{"text": "anna lives in oslo"}] * 4, tokenizer))
    args = TrainingArgs(batch_size=2, iters=2, adapter_file=str(tmp_path / "adapters.safetensors"))
    with pytest.warns(UserWarning, match=says("writes the layers that it trains without the mem")):
        train(model, optim.Adam(learning_rate=1e-2), rows, [], args)
    names = mx.load(str(tmp_path / "adapters.safetensors")).keys()
    assert names and all(name.endswith((".lora_a", ".lora_b")) for name in names)
    assert not mx.array_equal(model.layers[0].self_attn.memory_q_proj, before)
    about = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": LORA}
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    model.eval()
    dm.save_adapter(model, tmp_path / "memory")
    again, _ = dm.load(str(base), tmp_path / "memory", adapter_path=str(tmp_path))
    assert mx.allclose(again(TOKENS), model(TOKENS), atol=1e-5)


def test_mlx_lms_trainer_saves_a_memory_that_is_trained_alone(
    base: Path, adapter: Path, tmp_path: Path
) -> None:
    model, tokenizer = dm.load(str(base), adapter)
    rows = CacheDataset(TextDataset([{"text": "anna lives in oslo"}] * 4, tokenizer))
    file = tmp_path / "adapters.safetensors"
    train(model, optim.Adam(1e-3), rows, [], TrainingArgs(batch_size=2, iters=1, adapter_file=file))
    assert mx.load(str(file)).keys() == mx.load(str(adapter / "adapters.safetensors")).keys()


def test_fuse_leaves_the_memory_out_and_says_so(
    tool: Callable[..., str], base: Path, adapter: Path, tmp_path: Path
) -> None:
    out = tmp_path / "fused"
    with pytest.warns(UserWarning, match=says("The model is written without its memory")):
        tool("fuse", "--model", base, "--adapter-path", adapter, "--save-path", out)
    assert same(mlx_lm.load(str(out))[0], mlx_lm.load(str(base))[0])


@pytest.mark.parametrize("donate", [True, False])
def test_what_convert_and_save_write_is_the_plain_model(
    base: Path, adapter: Path, tmp_path: Path, donate: bool
) -> None:
    model, tokenizer, config = dm.load(str(base), adapter, return_config=True)
    with pytest.warns(UserWarning, match="written without its memory"):
        save(tmp_path / "out", str(base), model, tokenizer, config, donate_model=donate)
    assert same(mlx_lm.load(str(tmp_path / "out"))[0], mlx_lm.load(str(base))[0])


def test_convert_makes_a_model_that_a_memory_is_loaded_on(
    tool: Callable[..., str], tmp_path: Path
) -> None:
    wide = tiny_model_folder(tmp_path / "wide", hidden_size=64)
    dm.save_adapter(strong_pair(wide)[0], tmp_path / "memory")
    tool("convert", "--hf-path", wide, "--mlx-path", tmp_path / "q", "-q", "--q-bits", "4")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that the base has another name
        model, _ = dm.load(str(tmp_path / "q"), tmp_path / "memory")
    assert not same(model, mlx_lm.load(str(tmp_path / "q"))[0])


def test_quantizing_below_a_memory_leaves_the_memory_as_it_is(tmp_path: Path) -> None:
    wide = tiny_model_folder(tmp_path / "wide", hidden_size=64)
    model, _ = strong_pair(wide)
    before = {name: mx.array(value) for name, value in tree_flatten(model.trainable_parameters())}
    quantize_model(model, {}, group_size=32, bits=4)
    after = dict(tree_flatten(model.trainable_parameters()))
    assert after.keys() == before.keys()
    assert all(mx.array_equal(after[name], before[name]) for name in before)
    assert mx.isfinite(model(TOKENS)).all()


@pytest.mark.slow
def test_dwq_trains_the_scales_and_not_the_memory(tmp_path: Path) -> None:
    from mlx_lm.quant.dwq import dwq_quantize

    wide = tiny_model_folder(tmp_path / "wide", hidden_size=64)
    teacher, _ = strong_pair(wide)
    model, tokenizer = strong_pair(wide)
    quantize_model(model, {}, group_size=32, bits=4)
    before = mx.array(model.layers[0].self_attn.memory_q_proj)
    scales = mx.array(model.layers[0].self_attn.q_proj.scales)
    rows = CacheDataset(TextDataset([{"text": "anna lives in oslo"}] * 4, tokenizer))
    with pytest.warns(UserWarning, match="without the memory"):
        dwq_quantize(
            model, lambda x, *_, **__: teacher(x), optim.Adam(1e-3), rows, rows, 2, 64, seed=0
        )
    assert mx.array_equal(model.layers[0].self_attn.memory_q_proj, before)
    assert not mx.array_equal(model.layers[0].self_attn.q_proj.scales, scales)


def test_upload_sends_a_folder_that_mlx_lm_then_loads(
    base: Path, adapter: Path, registered: None
) -> None:
    """mlx_lm.upload sends folders as they are; what counts is that they are complete."""
    names = sorted(file.name for file in adapter.iterdir())
    assert names == ["adapter_config.json", "adapters.safetensors"]
    assert isinstance(mlx_lm.load(str(base), adapter_path=str(adapter))[0], nn.Module)


def test_every_tool_has_a_row_in_the_table() -> None:
    tools = (
        *("generate", "chat", "server", "cache_prompt", "batch_generate", "perplexity", "evaluate"),
        *("benchmark", "lora", "dora", "fuse", "convert", "quantize", "dwq", "upload"),
    )
    rows = [line.split("|")[1].strip(" `") for line in ROWS.splitlines() if line.startswith("| `")]
    assert rows == list(tools)


def test_register_reaches_tools_that_were_imported_before(base: Path, adapter: Path) -> None:
    import mlx_lm.lora

    dm.register()
    try:
        model, _ = mlx_lm.load(str(base))
        assert mlx_lm.lora.load_adapters(model, str(adapter)) is model
        assert len(make_prompt_cache(model)) == 2 and dm.detach(model) is model
    finally:
        dm.unregister()
    assert mlx_lm.lora.load_adapters is mlx_lm.tuner.utils.load_adapters
