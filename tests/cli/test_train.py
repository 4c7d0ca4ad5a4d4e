"""`deltamem-mlx train`: data in, an adapter out, whatever happens in between."""

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from conftest import ROOT, RunCli
from forked import COMMAND, Nursery, Piped
from tiny import tiny_model_folder
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.adapters.files import read_adapter
from deltamem_mlx.cli.main import app
from deltamem_mlx.training import trainer
from deltamem_mlx.training.checkpoint import STATE_FILE
from deltamem_mlx.training.folder import one_run
from deltamem_mlx.training.report import read_metrics

Start = Callable[..., Piped]
FLAGS = ("--batch-size", "2", "--rank", "4", "--learning-rate", "1e-2", "--save-every", "2")


def row(number: int) -> dict:
    food = ("tea", "rice", "milk")[number % 3]
    turns = [f"I like {food}.", "Ok.", "What do I like?", food]
    roles = ("user", "assistant") * 2
    pairs = zip(roles, turns, strict=True)
    return {"messages": [{"role": role, "content": text} for role, text in pairs]}


def write_rows(path: Path, numbers: range) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row(i)) + "\n" for i in numbers))
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_rows(folder / "train.jsonl", range(9))
    write_rows(folder / "valid.jsonl", range(3))
    write_rows(folder / "test.jsonl", range(4))
    return folder


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one takes as long as these runs do."""
    monkeypatch.setattr(trainer, "draw_curve", lambda folder: False)


@pytest.fixture
def base(qwen3_tiny: Path, data: Path, tmp_path: Path) -> list[str]:
    """The flags every run here has; the adapter goes to ``out``."""
    named = {"--model": qwen3_tiny, "--data": data, "--adapter-path": tmp_path / "out"}
    return ["train", *(str(word) for pair in named.items() for word in pair), *FLAGS]


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def refused(code: int, *args: str | Path) -> str:
    done = call(*args)
    assert done.exit_code == code, (done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, done.stderr
    return done.stderr


def test_a_run_from_the_table_to_the_command(
    base: list[str], tmp_path: Path, qwen3_tiny: Path
) -> None:
    done = call(*base, "--iters", "4", "--steps-per-report", "2", "--test")
    assert done.exit_code == 0, done.stderr
    for said in ("of the model", "9 conversations", "3 held out", "4 iterations", "GB", "β"):
        assert said in done.stderr
    assert "empty memory" in done.stderr
    assert "test loss" in done.stderr
    out = tmp_path / "out"
    assert str(out) in done.stdout
    command = next(line for line in done.stdout.splitlines() if "deltamem-mlx generate" in line)
    used = call(*command.split()[1:], "-m", "2")
    # The command's notes.txt is the reader's own.
    assert "notes.txt" in used.stderr
    _, adapter = mlx_lm.load(str(qwen3_tiny)), read_adapter(out)
    assert adapter.config == dm.DeltaMemConfig(rank=4, delta_heads=("q", "o"))
    assert adapter.base_model["name"] == str(qwen3_tiny)
    dm.load(str(qwen3_tiny), str(out))


def test_teachers_are_shown_from_the_table_to_the_metrics(base: list[str], tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    write_rows(mixed / "train.jsonl", range(4))
    with (mixed / "train.jsonl").open("a") as file:
        file.writelines(json.dumps(row(i) | {"unrelated": True}) + "\n" for i in range(4))
    write_rows(mixed / "valid.jsonl", range(2))
    flags = ("--data", mixed, "--iters", "2", "--steps-per-report", "2", "--distill", "0.5")
    done = call(*base, *flags)
    assert done.exit_code == 0, done.stderr
    for said in (
        "4 episodes with replies of which the plain model",
        "from its context",
        "from silence",
    ):
        assert said in done.stderr
    assert "train_kl_unrelated" in read_metrics(tmp_path / "out")[-2]
    changed = refused(1, *base, *flags[:-1], "0.7", "--resume")
    assert "distill: 0.5, now 0.7" in changed


def test_the_built_in_base_by_its_name(base: list[str], tmp_path: Path) -> None:
    args = [*base, "--iters", "1", "--val-batches", "1"]
    args[args.index("--model") + 1] = "builtin"
    done = call(*args)
    assert done.exit_code == 0, done.stderr
    assert read_adapter(tmp_path / "out").base_model["name"] == "builtin"
    used = call("generate", "--adapter", tmp_path / "out", "-p", "hi", "-m", "1")
    assert used.exit_code == 0, used.stderr


def test_json_is_all_of_stdout(base: list[str], tmp_path: Path) -> None:
    done = call(*base, "--iters", "2", "--json", "--quiet")
    told = json.loads(done.stdout)
    assert (told["iteration"], told["finished"]) == (2, True)
    assert told["adapter_path"] == str(tmp_path / "out")
    assert told["val_loss"] == read_metrics(tmp_path / "out")[-1]["val_loss"]
    assert done.stderr == ""


def test_every_setting_reaches_the_adapter(base: list[str], tmp_path: Path) -> None:
    done = call(
        *base,
        *("--iters", "1", "--alpha", "12", "--delta-heads", "v,k", "--num-state-heads", "2"),
        *("--write-granularity", "message_mean", "--output-init", "random"),
        *("--beta-bias-init", "-2", "--online-gain", "0.5", "--target-layers", "1"),
        *("--adapter-settings", '{"couple_lambda": false}', "--grad-checkpoint"),
    )
    assert done.exit_code == 0, done.stderr
    assert read_adapter(tmp_path / "out").config == dm.DeltaMemConfig(
        rank=4,
        alpha=12,
        delta_heads=("k", "v"),
        num_state_heads=2,
        memory_write_granularity="message_mean",
        output_init="random",
        beta_bias_init=-2,
        online_gain=0.5,
        target_layers=(1,),
        couple_lambda=False,
    )


def test_options_from_a_file(base: list[str], tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text("iters: 3\nrank: 2\nmax_length: 64\n")
    done = call(*base, "--config", tmp_path / "train.yaml", "--json", "-q")
    assert json.loads(done.stdout)["iteration"] == 3
    assert read_adapter(tmp_path / "out").config.rank == 4  # flags win


def test_a_flag_outdoes_what_a_file_says_against_it(base: list[str], tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("iters: 2\noverwrite: true\n")
    assert not call(*base, "-c", file, "-q").exit_code
    done = call(*base, "-c", file, "--resume")
    assert not done.exit_code and "begins anew" not in done.stderr
    told = json.loads(call(*base, "-c", file, "--epochs", "1", "--json", "-q").stdout)
    assert told["iteration"] == 5  # 9 episodes in twos
    file.write_text("iters: 2\noverwrite: true\nresume: true\n")
    done = call(*base, "-c", file)
    assert done.exit_code == 2
    assert "--resume and --overwrite: give one of them" in done.stderr


def test_epochs(base: list[str]) -> None:
    told = json.loads(call(*base, "--epochs", "1.5", "--json", "-q").stdout)
    assert told["iteration"] == 7  # 1.5 x 9 episodes in twos


def test_quantized_base(data: Path, tmp_path: Path) -> None:
    model = tiny_model_folder(tmp_path / "q4", bits=4, hidden_size=64, intermediate_size=64)
    flags = ("--model", model, "--data", data, "--adapter-path", tmp_path / "out")
    done = call("train", *flags, *FLAGS, "--iters", "2", "-q")
    assert done.exit_code == 0, done.stderr
    dm.load(str(model), str(tmp_path / "out"))


def test_training_further(base: list[str], tmp_path: Path) -> None:
    call(*base, "--iters", "4", "-q")
    first = tmp_path / "out"
    further = [*base, "--iters", "1", "--learning-rate", "1e-9", "-q"]
    further[further.index(str(first))] = str(tmp_path / "second")
    snapshot = first / "0000004_adapters.safetensors"
    for source in (first, snapshot):
        done = call(*further, "--resume-adapter-file", source, "--overwrite")
        assert done.exit_code == 0, done.stderr
        before, after = (read_adapter(f).tensors for f in (first, tmp_path / "second"))
        assert all(mx.allclose(before[name], after[name], atol=1e-7).item() for name in before)
        assert any(mx.abs(before[name]).max().item() > 0 for name in before)
    other = ("--resume-adapter-file", first, "--overwrite", "--rank", "2", "--alpha", "16")
    text = refused(1, *further, *other)
    assert "rank: 2, the adapter has 4" in text
    assert "alpha" not in text


# --- stopped and resumed, in real processes


@pytest.fixture
def start(nursery: Nursery) -> Iterator[Start]:
    """Starts the command; what it started is ended at last."""
    with ExitStack() as stack:
        yield lambda *args: stack.enter_context(nursery.piped(*COMMAND, *args))


def wait_for_iteration(folder: Path, iteration: int, process: Piped) -> None:
    """Until the process has reported it."""
    give_up = time.monotonic() + 300
    while max((r["iteration"] for r in read_metrics(folder)), default=-1) < iteration:
        assert process.returncode is None, process.communicate()
        assert time.monotonic() < give_up
        time.sleep(0.01)


def same_weights(a: Path, b: Path) -> bool:
    first, second = (mx.load(str(folder / "adapters.safetensors")) for folder in (a, b))
    return first.keys() == second.keys() and all(
        np.array_equal(np.array(first[name]), np.array(second[name])) for name in first
    )


def test_killed_and_resumed_ends_with_the_same_weights(
    base: list[str], tmp_path: Path, nursery: Nursery
) -> None:
    def into(name: str, *flags: str) -> list[str]:
        run = [*base, *flags, "--save-every", "5", "--steps-per-report", "1", "-q"]
        run[run.index(str(tmp_path / "out"))] = str(tmp_path / name)
        return run

    assert call(*into("first", "--iters", "1")).exit_code == 0
    run = into("out", "--iters", "16")
    begin = ("--resume-adapter-file", str(tmp_path / "first"))  # which going on need not repeat
    dying = ROOT / "tests/helpers/dying.py", "0", "deltamem_mlx.training.trainer:Trainer._update"
    with nursery.piped(*dying, "9", *run, *begin) as process:  # the ninth never is
        assert process.wait(300) == -signal.SIGKILL
    assert max(r["iteration"] for r in read_metrics(tmp_path / "out")) == 8
    mx.load(str(tmp_path / "out" / "adapters.safetensors"))
    assert call(*run, "--resume").exit_code == 0
    assert call(*into("whole", "--iters", "16"), *begin).exit_code == 0
    assert same_weights(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_ends_with_the_same_weights(
    base: list[str], tmp_path: Path, start: Start
) -> None:
    """Also in the midst of writing: there is a checkpoint after every other iteration."""
    run = [*base, "--iters", "600", "--save-every", "2", "--steps-per-report", "1", "-q"]
    out, moments = tmp_path / "out", random.Random(0)
    kills = 0
    for _ in range(20):
        process = start(*run, *(["--resume"] if (out / STATE_FILE).exists() else []))
        begun = max((r["iteration"] for r in read_metrics(out)), default=0)
        wait_for_iteration(out, begun + 1, process)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        kills += process.wait() == -signal.SIGKILL
        if (out / "adapter_config.json").exists():
            read_adapter(out)
    assert kills == 20
    assert call(*run, "--resume").exit_code == 0
    whole = [word.replace(str(out), str(tmp_path / "whole")) for word in run]
    assert call(*whole).exit_code == 0
    assert same_weights(out, tmp_path / "whole")
    assert not [path for path in out.rglob(".*") if path.name != ".lock"]


def test_interrupted_saves_and_says_how_to_go_on(
    base: list[str], tmp_path: Path, start: Start
) -> None:
    run = [*base, "--iters", "3000", "--steps-per-report", "1"]
    process = start(*run, "--overwrite")  # which would begin anew
    wait_for_iteration(tmp_path / "out", 5, process)
    process.kill(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    command = next(line for line in stderr.splitlines() if "Go on with: " in line)
    words = command.partition("Go on with: ")[2].split()
    assert words == ["deltamem-mlx", *run, "--resume"]
    text = refused(2, *run)
    assert "--resume" in text


# --- what is wrong, in one line


def test_a_test_needs_a_set_to_test(base: list[str], data: Path, tmp_path: Path) -> None:
    args = [str(data / "train.jsonl") if word == str(data) else word for word in base]
    text = refused(2, *args, "--iters", "1", "--test")
    assert f"--test: {data / 'train.jsonl'} has no test.jsonl." in text
    assert not (tmp_path / "out").exists()


def test_wrong_flags(base: list[str], tmp_path: Path) -> None:
    assert "Missing: --model." in refused(2, "train")
    cases = {
        ("--iters", "5", "--epochs", "1"): "one of them",
        ("--epochs", "-1"): "--epochs is -1.0",
        ("--learning-rate", "0"): "learning_rate is 0.0",
        ("--lr-schedule", "linear"): "cosine or constant",
        ("--rank", "0"): "rank: 0 must be at least 1",
        ("--delta-heads", "q,x"): "'x' is none of q, k, v, o",
        ("--write-granularity", "word"): "sentence_mean",
        ("--target-layers", "a"): "no list of layers",
        ("--adapter-settings", "[1]"): "JSON object",
        ("--adapter-settings", '{"rnak": 8}'): "no setting 'rnak'; expected rank.",
        ("--assistant-loss-mode", "none"): "visible_assistant_turns",
        ("--max-seq-length", "1"): "max_length is 1",
        ("--state-only-prob", "0.7", "--no-memory-prob", "0.7"): "sum is above 1",
        ("--batch-size", "0"): "--batch-size",
        ("--distill", "-1"): "distill is -1.0; expected 0 or more",
        ("--no-harm", "nan"): "no_harm is nan; expected 0 or more",
        ("--margin", "-1"): "margin is -1.0; expected 0 or more",
        ("--margin", "1", "--batch-size", "1"): "margin is 1.0 and batch_size 1",
        ("--hours", "1"): "leave --data out, or give --course",
    }
    for flags, said in cases.items():
        assert said in refused(2, *base, *flags), flags
    assert not (tmp_path / "out").exists()


def test_wrong_input(base: list[str], qwen3_tiny: Path, tmp_path: Path) -> None:
    for flags, said in {
        ("--data", tmp_path / "none"): "No file or folder",
        ("--model", tmp_path / "none"): "none",
        ("--resume-adapter-file", tmp_path / "none"): "none",
        ("--resume-adapter-file", qwen3_tiny): "config",
        ("--target-layers", "9"): "layers 0 to",
        ("--report-to", "nothing"): "nothing",
    }.items():
        assert said in refused(1, *base, *flags), flags
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "plain"}\n')
    assert "bad.jsonl:1" in refused(1, *base, "--data", bad)


def test_divergence_is_one_line(base: list[str], tmp_path: Path) -> None:
    text = refused(1, *base, "--iters", "30", "--learning-rate", "1e30", "--save-every", "1")
    assert "stays in" in text
    assert "lower --learning-rate" in text
    adapter = read_adapter(tmp_path / "out")
    assert all(mx.isfinite(tensor).all().item() for tensor in adapter.tensors.values())


def test_help_is_quick_and_shows_examples(run_cli: RunCli) -> None:
    done = run_cli("train", "--help")
    assert done.returncode == 0
    assert "mlx.launch" in done.stdout
    assert "[default: 8]" in done.stdout


# --- what the folder holds already


def test_nothing_is_replaced_unless_it_is_asked_for(base: list[str], tmp_path: Path) -> None:
    run, out = [*base, "--iters", "1", "-q"], tmp_path / "out"
    out.mkdir()
    (out / "adapter_config.json").write_text('{"fine_tune_type": "lora"}')
    mx.save_safetensors(str(out / "0000100_adapters.safetensors"), {"lora_a": mx.zeros(1)})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    text = refused(2, *run)
    assert "'lora'" in text
    assert "--overwrite" in text
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert call(*run, "--overwrite").exit_code == 0
    assert (out / "0000100_adapters.safetensors").exists()
    assert "finished run of 1 iterations" in refused(2, *run)
    assert "give one of them" in refused(2, *run, "--resume", "--overwrite")


def test_resuming_a_finished_run_says_that_nothing_was_trained(base: list[str]) -> None:
    run = [*base, "--iters", "1"]
    assert call(*run, "-q").exit_code == 0
    done = call(*run, "--resume")
    assert done.exit_code == 0
    assert "nothing was trained" in done.stderr
    assert "--resume-adapter-file" in done.stderr
    assert json.loads(call(*run, "--resume", "--json").stdout)["trained"] == 0


def test_a_memory_that_makes_no_difference_is_said(base: list[str]) -> None:
    done = call(*base, "--iters", "1", "--learning-rate", "1e-9")
    assert "not yet what was told" in " ".join(done.stderr.split())


def test_a_folder_in_which_another_process_trains(base: list[str], tmp_path: Path) -> None:
    with one_run(tmp_path / "out"):
        assert f"process {os.getpid()}" in refused(1, *base, "--iters", "1")
    assert call(*base, "--iters", "1", "-q").exit_code == 0


@pytest.mark.parametrize("value", ["[]", "{}", "9" * 5000, "[[1]]", "2026-01-01", "1e999"])
def test_a_file_with_a_value_that_is_no_number(base: list[str], tmp_path: Path, value: str) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"iters: {value}\n")
    text = refused(2, *base, "--config", file)
    assert "'iters'" in text or "--iters" in text or "train.yaml" in text
    assert len(text) < 600


# --- the package's own course


def test_a_course_refuses_by_name_what_it_chooses_itself(data: Path, tmp_path: Path) -> None:
    run = ("train", "--model", "builtin", "--adapter-path", tmp_path / "out")
    for flags, said in {
        ("--iters", "5", "--rank", "4"): "--iters, --rank: the course",
        ("--data", data, "--course", "--distill", "1"): "--distill: the course",
        ("--hours", "0"): "--hours is 0.0; expected a positive number",
        ("--resume", "--overwrite"): "--resume and --overwrite",
    }.items():
        assert said in refused(2, *run, *flags), flags
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text("{}")
    assert "metrics.jsonl" in refused(2, *run)
    assert refused(1, "train", "--model", tmp_path / "none", "--adapter-path", tmp_path / "new")


def test_a_course_shows_its_steps_and_ends_with_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps themselves are tests/training/test_course.py's."""
    from deltamem_mlx.training.course import course as module
    from deltamem_mlx.training.course.viewing import Planned

    class Played(module.Course):
        def run(self) -> module.Finished:
            steps = [
                Planned("facts", "to find", 800, 100, 1e-3, 1200.0, False),
                Planned("quiet", "gates", 0, 0, 0.0, 60.0, True),
            ]
            self.viewer.plan(steps)
            self.viewer.begin(steps[0], 1, 1200.0)
            self.viewer.end(steps[0], {}, 65.0)
            tried = [
                {"loss": 2.0 - by, "own": 2.0 - by, "foreign": 2.5 - 1.2 * by} for by in (0.0, 0.5)
            ]
            found = {"share": 0.5, "tried": dict(zip(("0.0", "0.5"), tried, strict=True))}
            self.viewer.end(steps[1], found, 65.0)
            return module.Finished(self.folder, "## The page", {"facts": {"result": {"loss": 1}}})

    monkeypatch.setattr(module, "Course", Played)
    done = call("train", "--model", "builtin", "--adapter-path", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    for text in ("1 facts", "800", "20 min", "About 20 min in all", "Step 1 of 2", "50% of the"):
        assert text in done.stderr
    assert "2.000 → 1.500, remembered 0.500 → 0.400 nats" in done.stderr
    assert "## The page" in done.stdout and "--adapter" in done.stdout
    done = call("train", "--model", "builtin", "--adapter-path", tmp_path / "out", "--json")
    assert json.loads(done.stdout)["steps"] == {"facts": {"loss": 1}}
