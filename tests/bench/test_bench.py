"""The bench: that it measures what it says, in the order it says, and what its command prints."""

import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import FIXTURES
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from tiny import tiny_model, weights_of
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.bench import (
    SHAPES,
    STRATEGIES,
    BenchPlan,
    Effort,
    random_model,
    shape_config,
    with_plain_twin,
    with_random_adapters,
)
from deltamem_mlx.bench.generation import (
    Row,
    cache_at,
    first_token,
    memory_facts,
    mix,
    with_peak,
)
from deltamem_mlx.bench.machine import blas
from deltamem_mlx.bench.primitives import cached_arrays
from deltamem_mlx.bench.run import BenchReport
from deltamem_mlx.bench.scan import ScanRow, usable_forms
from deltamem_mlx.bench.timing import CLOCKS, Samples, alternate
from deltamem_mlx.bench.training import conversation, lora_update
from deltamem_mlx.cli.main import app

pytestmark = pytest.mark.fused

ADAPTER = FIXTURES / "golden" / "tsw_qo" / "adapter"
QUICK = ("--rounds", "1", "--decode-tokens", "2")
SMALL = (*QUICK, "--shape", "tiny", "--layers", "2", "--prompt-lengths", "9", "--depths", "4")


def call(*args: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, args)])


def measured(*args: str | Path) -> dict:
    done = call(*args, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


# --- shapes

PARAMETERS = {  # of the models as published
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-1.7b": 1_711_376_384,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_as_many_weights_as_the_model_it_is_named_after(name: str) -> None:
    from mlx_lm.models import llama, qwen3

    config = shape_config(name)
    module = {"llama": llama, "qwen3": qwen3}[config["model_type"]]
    model = module.Model(module.ModelArgs.from_dict(config))  # lazy: nothing is allocated
    assert sum(w.size for _, w in tree_flatten(model.parameters())) == PARAMETERS[name]


def test_fewer_layers_get_their_share_of_the_vocabulary() -> None:
    config = shape_config("qwen3-4b", 2)
    assert config["num_hidden_layers"] == 2
    assert abs(config["vocab_size"] - 151936 * 2 / 36) < 64
    assert SHAPES["qwen3-4b"]["num_hidden_layers"] == 36


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"No shape 'qwen'\. Expected one of qwen3-0\.6b"):
        shape_config("qwen")
    with pytest.raises(ValueError, match=r"tiny has 4 layers, asked for 5\. Expected 1 to 4"):
        shape_config("tiny", 5)


def test_random_models_take_bits_dtype_and_seed() -> None:
    config = shape_config("tiny", 1)
    model = random_model(config, bits=4, dtype=mx.bfloat16)
    attention = model.layers[0].self_attn
    assert attention.q_proj.bits == 4
    assert attention.q_proj.scales.dtype == mx.bfloat16
    assert model.layers[0].input_layernorm.weight.dtype == mx.bfloat16
    one, two, other = (random_model(config, seed=seed) for seed in (1, 1, 2))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert mx.array_equal(weights_of(one)[name], weights_of(two)[name])
    assert not mx.array_equal(weights_of(one)[name], weights_of(other)[name])


# --- the models beside each other


def test_twins_share_the_weights_and_leave_the_plain_model_alone() -> None:
    plain = tiny_model()
    prompt = mx.array([[1, 2, 3]])
    logits = plain(prompt)
    pair = with_random_adapters(plain, list(STRATEGIES))
    assert list(pair.patched) == ["TSW", "MSW", "SSW"]
    for patched in pair.patched.values():
        theirs = dict(tree_flatten(patched.parameters()))
        assert all(theirs[name] is w for name, w in tree_flatten(plain.parameters()))
        assert len(dm.memory_state(make_prompt_cache(patched))) == 2
    assert not any("memory" in name for name, _ in tree_flatten(plain.parameters()))
    assert mx.array_equal(plain(prompt), logits)


def test_the_twin_of_a_patched_model_is_the_plain_one() -> None:
    plain = tiny_model()
    prompt = mx.array([[1, 2, 3]])
    logits = plain(prompt)
    pair = with_plain_twin(dm.attach(plain, dm.DeltaMemConfig(num_state_heads=4), seed=0))
    assert list(pair.patched) == ["MSW"]
    assert mx.array_equal(pair.plain(prompt), logits)
    assert dm.memory_state(make_prompt_cache(pair.patched["MSW"]))


def test_unknown_strategies_are_refused_together() -> None:
    with pytest.raises(ValueError, match="XSW, YSW: expected TSW, MSW, SSW"):
        with_random_adapters(tiny_model(), ["XSW", "TSW", "YSW"])


# --- what is timed


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_prefill_ends_in_the_token_that_one_call_gives(strategy: str) -> None:
    model = with_random_adapters(tiny_model(), [strategy]).patched[strategy]
    prompt = mx.random.randint(0, 96, (2, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deltamem_mlx.bench.generation.PREFILL_STEP", 32)
        token = first_token(model, prompt)
    if strategy != "SSW":  # whose tokens read another memory when messages end in between
        assert mx.array_equal(token, mx.argmax(model(prompt)[:, -1], axis=-1))
    assert token.shape == (2,)


@pytest.mark.parametrize("arch", ["qwen3", "gemma3_text"])
def test_a_cache_has_the_depth_that_is_asked_for(arch: str) -> None:
    pair = with_random_adapters(tiny_model(arch), ["MSW"])
    for model in (pair.plain, pair.patched["MSW"]):
        cache = cache_at(model, 3, 21)
        assert {entry.offset for entry in cache} == {21}
        assert {x.shape[0] for x in cached_arrays(cache) if x.ndim == 4} == {3}
        model(mx.zeros((3, 1), mx.int32), cache=cache)
        assert {entry.offset for entry in cache} == {22}


def test_bytes_that_a_conversation_keeps() -> None:
    pair = with_random_adapters(tiny_model(), ["TSW", "MSW"])
    tsw, msw = (memory_facts(model) for model in pair.patched.values())
    assert (tsw["state_bytes"], msw["state_bytes"]) == (2 * 8 * 8 * 4, 4 * 2 * 8 * 8 * 4)
    cache = make_prompt_cache(pair.plain)
    pair.plain(mx.zeros((1, 256), mx.int32), cache=cache)
    assert tsw["kv_bytes_per_token"] * 256 == sum(entry.nbytes for entry in cache)


def test_a_peak_counts_what_is_above_the_weights() -> None:
    kept = mx.zeros((1000, 1000))
    mx.eval(kept)
    result, taken = with_peak(lambda: mx.ones((500, 1000)).sum().item())
    assert result == 500_000
    assert 2_000_000 <= taken < kept.nbytes


def test_forms_of_the_scan_that_cannot_run_are_left_out() -> None:
    forms = usable_forms()
    assert {"recurrent", "chunk"} <= set(forms)
    assert ("metal" in forms) == mx.metal.is_available()


def test_contestants_take_turns_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def run(name: str) -> float:
        order.append(name)
        return float(len(order))

    samples = alternate({n: lambda n=n: run(n) for n in "AB"}, Effort(rounds=3))
    assert "".join(order) == "AB" + "AB" + "BA" + "AB"
    assert samples["A"].values == (3.0, 6.0, 7.0)


def test_rounds_are_as_many_as_fit_but_three() -> None:
    effort = Effort(seconds=10)
    assert not effort.enough(2, 100)
    assert effort.enough(3, 9)  # a fourth would take it to 12
    assert not effort.enough(8, 8)
    assert effort.enough(100, 0)
    assert not Effort(rounds=2).enough(1, 100)


def test_ratios_are_taken_round_by_round() -> None:
    ratio = Samples((2.0, 30.0, 5.0)).over(Samples((1.0, 10.0, 4.0)))
    assert (ratio.values, ratio.median) == ((2.0, 3.0, 1.25), 2.0)
    assert (ratio.low, ratio.high) == (1.25, 3.0)


@pytest.mark.parametrize(
    ("count", "ends"),
    # The ranks in tables of the sign test.
    [(1, (1, 1)), (5, (1, 5)), (6, (1, 6)), (9, (2, 8)), (20, (6, 15)), (50, (18, 33))],
)
def test_the_interval_of_a_median_goes_by_rank(count: int, ends: tuple[int, int]) -> None:
    values = [float(i) for i in range(1, count + 1)]
    assert Samples(tuple(values[::-1])).interval == ends


def test_the_clock_is_read_right_before_and_after_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def clock() -> float:
        events.append("clock")
        return float(len(events))

    monkeypatch.setitem(CLOCKS, "wall", clock)
    monkeypatch.setattr(mx, "synchronize", lambda: events.append("synchronize"))
    assert Effort().time(lambda: events.append("work")) == 3.0
    assert events == ["synchronize", "clock", "work", "synchronize", "clock"]


def test_large_batches_are_prefilled_with_short_prompts_only() -> None:
    plan = BenchPlan(prompt_lengths=(128, 512, 2048), batch_sizes=(1, 8))
    assert plan.prefills() == [(1, 128), (1, 512), (1, 2048), (8, 128)]


@pytest.mark.parametrize(
    ("loaded", "found"),
    [
        ("/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblasp-r0.3.21.so", "openblas"),
        ("/opt/intel/libmkl_rt.so.2", "mkl"),
        ("/x/numpy.libs/libscipy_openblas64_-8fb3d286.so", "built-in"),
        ("/x/mlx_cpu.libs/libblas-bd8a282c.so.3.10.0", "built-in"),
    ],
)
def test_the_blas_is_told_by_the_libraries_in_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: str, found: str
) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    maps = tmp_path / "maps"
    maps.write_text(f"7f86fa168000-7f86fa28d000 r--p 00000000 fe:00 5595142      {loaded}\n")
    assert blas(maps) == found
    assert blas(tmp_path / "nothing") == "unknown"


# --- the command


def test_json_has_every_part(tmp_path: Path) -> None:
    found = measured(
        *(*SMALL, "--strategies", "TSW,SSW", "--batch-sizes", "1,2", "--scan-lengths", "8,5"),
        *("--prompt-lengths", "4,8", "--plot", tmp_path / "new" / "bench.svg"),
    )
    assert list(found)[:4] == ["schema", "machine", "model", "clock"]
    assert list(found)[4:] == ["prefill", "decode", "memory", "scan"]
    assert found["machine"]["mlx"] == mx.__version__
    assert found["model"] == {
        "name": "tiny",
        "layers": 2,
        "random_weights": True,
        "bits": None,
        "dtype": "float32" if mx.default_device().type == mx.DeviceType.cpu else "bfloat16",
        "adapter": None,
    }
    cells = [(row["batch_size"], row["length"], row["strategy"]) for row in found["prefill"]]
    both = ("TSW", "SSW")
    assert cells == [(b, n, s) for b, n in ((1, 4), (1, 8), (2, 4)) for s in both]
    for row in found["prefill"] + found["decode"]:
        assert set(row) == {
            *("strategy", "batch_size", "length", "cached", "ratio", "plain", "patched")
        }
        seconds = [row[name]["seconds"]["median"] for name in ("patched", "plain")]
        assert row["ratio"]["median"] == pytest.approx(seconds[0] / seconds[1])
        tokens = row["batch_size"] * (row["length"] if row in found["prefill"] else 1)
        assert row["plain"]["tokens_per_second"] * seconds[1] == pytest.approx(tokens)
    assert all(row["plain"]["peak_bytes"] > 0 for row in found["prefill"])
    assert [(r["batch_size"], r["strategy"]) for r in found["decode"]] == [
        (b, s) for b in (1, 2) for s in both
    ]
    for row in found["memory"]:
        assert row["state_bytes"] == row["layers"] * row["heads"] * row["rank"] ** 2 * 4
        assert list(row["added_per_layer"]) == ["1", "8", "64"]
        for added in row["added_per_layer"].values():
            assert 0 < added["kernels"] <= added["primitives"]
    forms = usable_forms()
    assert [(r["length"], r["form"]) for r in found["scan"]] == [
        (n, f) for n in (5, 8) for f in forms
    ]
    recurrent = found["scan"][0]
    assert recurrent["form"] == "recurrent"
    assert recurrent["forward_backward"]["speedup_over_recurrent"]["median"] == 1
    assert (tmp_path / "new" / "bench.svg").read_text().startswith("<?xml")


def test_training_beside_lora_of_mlx_lm() -> None:
    args = (*SMALL, "--only", "train", "--strategies", "TSW,SSW")
    found = measured(*args, "--write-lengths", "30,8")
    rows = found["train"]
    assert [(r["written"], r["strategy"]) for r in rows] == [
        (n, s) for n in (8, 30) for s in ("TSW", "SSW")
    ]
    for row in rows:
        assert list(row["ways"]) == ["mlx_lm.lora", "train", "train, checkpoints"]
        for way in row["ways"].values():
            seconds = way["seconds"]["median"]
            assert way["tokens_per_second"] * seconds == pytest.approx(row["written"] + 64)
            assert way["peak_bytes"] > 0
    assert "mlx_lm.lora" in call(*args, "--write-lengths", "8").stdout
    refused = call(*SMALL, "--only", "memory", "--write-lengths", "8")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--write-lengths: only with --only train" in refused.stderr


def test_an_update_of_lora_learns_and_leaves_the_model_as_it_was() -> None:
    plain = tiny_model()
    before = {name: np.array(value) for name, value in tree_flatten(plain.parameters())}
    update = lora_update(plain, conversation(96, 40))
    losses = [update() for _ in range(3)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 3
    after = dict(tree_flatten(plain.parameters()))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], np.array(after[name])) for name in before)


def test_calls_behind_a_warm_cache() -> None:
    args = (*SMALL, "--only", "prefill", "--prompt-lengths", "2,9", "--batch-sizes", "1,2")
    found = measured(*args, "--cached", "64", "--strategies", "TSW,SSW")
    cells = [(row["batch_size"], row["length"], row["strategy"]) for row in found["prefill"]]
    assert cells == [(b, n, s) for b, n in ((1, 2), (1, 9), (2, 2)) for s in ("TSW", "SSW")]
    assert {row["cached"] for row in found["prefill"]} == {64}
    shown = call(*args, "--cached", "5")
    assert "One call behind 5 cached tokens" in shown.stdout
    assert "Prefill of 9 tokens behind 5, batch 1 …" in shown.stderr
    assert call(*args, "--cached", "-1").exit_code == 2


def test_a_profile_says_which_operations_and_how_many() -> None:
    args = (*SMALL[:-4], "--profile", "--batch-sizes", "1", "--cached", "4", "--clock", "cpu")
    found = measured(*args, "--strategies", "MSW", "--prompt-lengths", "1,8")
    assert found["prefill"] == found["memory"] == []
    rows = found["profile"]
    parts = ["the whole call", "building its graph", "projections", "memory", "corrections"]
    assert [(row["tokens"], row["part"]) for row in rows] == [(n, p) for n in (1, 8) for p in parts]
    for row in rows:
        median = row["seconds"]["median"]
        assert row["share_of_plain"] * median >= 0 and len(row["seconds"]["values"]) == 1
        assert bool(row["operations"]) == (row["part"] in parts[2:])
        assert row["part"] not in parts[2:] or median > 0
    by_part = {(row["tokens"], row["part"]): row["operations"] for row in rows}
    assert by_part[1, "corrections"] == by_part[8, "corrections"] == {"AddMM": 2}
    assert sum(by_part[1, "memory"].values()) == 9 < by_part[8, "memory"]["Transpose"] + 9
    shown = call(*args, "--only", "decode", "--depths", "4").stdout
    assert "Decode" in shown and "building its graph" in shown


def test_batches_as_a_server_has_them() -> None:
    args = (*SMALL, "--only", "decode", "--batch-sizes", "3", "--mixed", "--strategies", "TSW,SSW")
    assert measured(*args)["mixed"] is True
    assert "every second conversation only reads" in call(*args).stdout
    refused = call(*SMALL, "--only", "memory", "--mixed")
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "--mixed: only with decode among the parts." in refused.stderr
    for strategy, message in (("TSW", False), ("SSW", True)):
        cache = cache_at(with_random_adapters(tiny_model(), [strategy]).patched[strategy], 3, 4)
        mix(cache, 5)
        for entry in cache:
            assert entry.memory.read_only == [False, True, False]
            assert (entry.memory.ingest is not None) == message


def test_tables_on_stdout_progress_on_stderr() -> None:
    done = call(*SMALL, "--strategies", "MSW", "--scan-lengths", "8", "--batch-sizes", "1")
    assert done.exit_code == 0, done.output
    for said in (
        "tiny, 2 layers, float32, random weights, untrained adapter",
        f"mlx {mx.__version__}",
        "Prefill",
        "Decode",
        "2×4×8×8",
        "recurrent",
    ):
        assert said in done.stdout
    assert done.stdout.count("MSW") == 3
    assert "Prefill of 9 tokens, batch 1 …" in done.stderr
    assert "Prefill of" not in call(*SMALL, "--only", "memory", "--quiet").stderr


def test_only_the_parts_that_are_asked_for() -> None:
    found = measured(*SMALL, "--only", "memory")
    assert [len(found[part]) for part in ("prefill", "decode", "memory", "scan")] == [0, 0, 1, 0]


def test_quantized_random_weights() -> None:
    found = measured(*SMALL, "--bits", "4", "--dtype", "bfloat16", "--only", "decode")
    assert (found["model"]["bits"], found["model"]["dtype"]) == (4, "bfloat16")
    assert len(found["decode"]) == 2


def test_a_real_model_and_adapter(qwen3_tiny: Path) -> None:
    small = (*QUICK, "--only", "prefill,memory", "--prompt-lengths", "5", "--batch-sizes", "1")
    found = measured("--model", qwen3_tiny, "--adapter", ADAPTER, *small)
    assert found["model"]["adapter"] == str(ADAPTER)
    assert found["model"]["random_weights"] is False
    assert [row["strategy"] for row in found["prefill"]] == ["TSW"]
    without = measured("--model", qwen3_tiny, *small, "--strategies", "MSW")
    assert without["model"] == found["model"] | {"adapter": None}
    assert [row["heads"] for row in without["memory"]] == [4]


def test_what_a_draft_is_worth() -> None:
    flags = ("--model", "builtin", "--draft-model", "builtin", "--decode-tokens", "12")
    found = measured(*flags, "--rounds", "1", "--num-draft-tokens", "2,1")
    assert found["prefill"] == found["scan"] == []
    assert [row["ahead"] for row in found["draft"]] == [1, 2]
    for row in found["draft"]:
        assert row["tokens"] == 3 * 12 and row["same"] == row["prompts"] == 3
        assert 0 < row["drafted"] < row["tokens"] + 3 and 0 < row["acceptance"] < 1
        assert row["plain"]["tokens_per_second"] > 0
    table = call(*flags, "--rounds", "1").stdout
    assert "accepted" in table and "3 of 3" in table and "adapter builtin" in table


def test_options_from_a_file(tmp_path: Path) -> None:
    config = tmp_path / "bench.yaml"
    config.write_text("shape: tiny\nlayers: 1\nonly: scan\nscan-lengths: 6\nrounds: 1\n")
    assert [row["length"] for row in measured("--config", config)["scan"]] == [6, 6]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--prompt-lengths", "12,x"), "--prompt-lengths: '12,x' is not a list of positive"),
        (("--depths", "0"), "--depths: '0' is not a list of positive numbers, like 128,512."),
        (("--batch-sizes", ""), "--batch-sizes: '' is not"),
        (("--only", "prefill,speed,x"), "--only: 'speed', 'x': expected some of prefill, decode"),
        (("--strategies", "tsw"), "--strategies: 'tsw': expected some of TSW, MSW, SSW."),
        (("--shape", "gpt"), "--shape: 'gpt': expected some of qwen3-0.6b"),
        (("--shape", "tiny", "--layers", "5"), "--layers: 5 asked for, but tiny has 4."),
        (("--bits", "7"), "7 is not one of 2, 3, 4, 5, 6, 8."),
        (("--rounds", "0"), "'--rounds'"),
        (("--seed", "-1"), "'--seed'"),
        (("--rounds", "4", "--seconds", "9"), "--seconds, --rounds: give one of the two."),
        (("--model", "m", "--shape", "tiny"), "only without --model and --adapter."),
        (("--model", "m", "--bits", "4"), "only without --model and --adapter."),
        (("--adapter", "a", "--strategies", "TSW"), "--strategies: an --adapter has its own"),
        (("--plot", "bench.xyz"), "--plot: 'bench.xyz' does not end as a picture's name"),
        (("--draft-model", "builtin"), "--draft-model: only with --model or --adapter."),
        (("--model", "m", "--num-draft-tokens", "2"), "only with --draft-model."),
        (("--only", "draft"), "--only draft: give a --draft-model."),
        (("--plot", "a.png", "--only", "memory"), "--plot: drawn are prefill, decode and scan"),
        (("--plot", "a.png", "--only", "train"), "--plot: drawn are prefill, decode and scan"),
        (("--plot", "a.png", "--profile"), "--plot: drawn are prefill, decode and scan"),
        (("--model", "builtin", "--strategies", "SSW"), "builtin comes with an adapter"),
    ],
)
def test_wrong_use_exits_2_before_anything_runs(args: tuple[str, ...], said: str) -> None:
    done = call(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_a_missing_model_exits_1(tmp_path: Path) -> None:
    done = call("--model", tmp_path / "nothing", "--only", "memory")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "No folder" in done.stderr


def test_the_labels_of_many_bars_can_be_read() -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.bench_plot import draw_bench

    rows = [
        Row(name, batch, length, length, Samples([1.0]), Samples([1.05]))
        for name in ("TSW", "MSW", "SSW")
        for batch in (1, 8, 32)
        for length in (128, 512, 2048)
    ]
    machine = dict.fromkeys(("device", "chip", "cores", "system", "mlx", "mlx_lm", "blas"), "")
    picture = draw_bench(BenchReport(machine, {"name": "m"}, prefill=rows, decode=rows))
    for axes in picture.axes:
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == len(rows)
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("lengths", [[64], [64, 256]])
def test_every_form_of_the_scan_can_be_told_apart_in_the_picture(lengths: list[int]) -> None:
    pytest.importorskip("matplotlib")
    from deltamem_mlx.views.bench_plot import draw_bench

    rows = [
        ScanRow(form, 1, length, Samples([slow * length]), Samples([2.0 * slow * length]), ())
        for form, slow in (("recurrent", 2e-3), ("chunk", 1e-3))
        for length in lengths
    ]
    machine = dict.fromkeys(("device", "chip", "cores", "system", "mlx", "mlx_lm", "blas"), "")
    (axes,) = draw_bench(BenchReport(machine, {"name": "m"}, scan=rows)).axes
    names = {text.get_text() for text in axes.get_legend().get_texts()}
    forms = ("recurrent", "chunk")
    assert names == {*forms, *(f"{form} and gradients" for form in forms)}
    if len(lengths) == 1:
        assert len(axes.patches) == 4 and len({bar.get_x() for bar in axes.patches}) == 4
    else:
        assert all(len(line.get_xdata()) == 2 for line in axes.lines)
