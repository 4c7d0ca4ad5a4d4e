"""`deltamem-mlx inspect`: looks into adapters and memories, and changes nothing."""

import json
import re
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from conftest import FIXTURES, ROOT, RunCli
from hub_server import HubServer
from mlx_lm.models.cache import make_prompt_cache
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.adapters.loading import fingerprint
from deltamem_mlx.cli.main import app

GOLDEN = FIXTURES / "golden"


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of random weights, strong enough to change what the tiny model says."""
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=2.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


@pytest.fixture(scope="module")
def memory(qwen3_tiny: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The memory file of a session that was told something."""
    session = dm.MemorySession(*dm.load(str(qwen3_tiny), str(adapter)))
    session.remember("Anna likes tea.")
    path = tmp_path_factory.mktemp("memory") / "anna.safetensors"
    session.save(path, note="about tea")
    return path


@pytest.fixture
def pair(qwen3_tiny: Path, adapter: Path) -> list[str]:
    return ["--model", str(qwen3_tiny), "--adapter", str(adapter)]


@pytest.fixture
def talk(tmp_path: Path) -> Path:
    path = tmp_path / "talk.jsonl"
    said = [("user", "I am Anna."), ("assistant", "Hello."), ("user", "Now sort a list.")]
    path.write_text("\n".join(json.dumps({"role": r, "content": c}) for r, c in said))
    return path


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["inspect", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def found(*args: str | Path) -> dict:
    done = call("--json", *args)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_adapter(adapter: Path, qwen3_tiny: Path) -> None:
    value = found(adapter)
    model, _ = dm.load(str(qwen3_tiny), str(adapter))
    assert (value["kind"], value["fingerprint"]) == ("adapter", fingerprint(model))
    assert value["settings"]["rank"] == 8 and value["base_model"]["model_type"] == "qwen3"
    assert value["tensors"]["memory_q_proj"] == {"shape": [8, 32], "layers": 3}
    assert [layer["layer"] for layer in value["layers"]] == [0, 1, 2]
    text = call(adapter, "--numbers").stdout
    for said in (value["fingerprint"], "every token, to one state of 8 × 8", "q, k, v, o", "0.182"):
        assert said in text


def test_adapter_of_the_hub(run_cli: RunCli, hub: HubServer, tmp_path: Path) -> None:
    hub.add("user/adapter", GOLDEN / "msw_heads4" / "adapter")
    done = run_cli("inspect", "user/adapter", "--numbers", env=hub.env(tmp_path / "hub"))
    assert done.returncode == 0, done.stderr
    assert "user/adapter" in done.stdout and "4 states of 8 × 8" in done.stdout


def test_memory(memory: Path, adapter: Path) -> None:
    value = found(memory)
    assert (value["kind"], value["note"], value["conversations"]) == ("memory", "about tea", 1)
    assert value["adapter"] == found(adapter)["fingerprint"]
    assert value["state_shape"] == [1, 8, 8] and value["tokens_written"] > 15
    assert all(0 < layer["effective_rank"] <= 8 for layer in value["layers"])
    text = call(memory, "--numbers").stdout
    assert all(said in text for said in ("about tea", value["adapter"], value["created"]))


def test_two_memories(memory: Path, pair: list[str], tmp_path: Path) -> None:
    same = found(memory, memory)
    assert (same["same_adapter"], same["cosine"], same["change"]) == (True, pytest.approx(1), 0)
    model, _ = dm.load(pair[1], pair[3])
    cache = make_prompt_cache(model)
    model(mx.array([[7, 8, 9]]), cache=cache)
    dm.save_memory(tmp_path / "b.safetensors", cache, model)
    other = found(memory, tmp_path / "b.safetensors")
    assert other["cosine"] < 0.99 and other["change"] > 0.1
    assert len(other["layers"]) == 3
    assert "Warning" not in call(memory, tmp_path / "b.safetensors").stderr


def test_memories_of_different_adapters(memory: Path, pair: list[str], tmp_path: Path) -> None:
    model, _ = mlx_lm.load(pair[1])
    dm.attach(model, dm.DeltaMemConfig(), seed=9)
    dm.save_memory(tmp_path / "b.safetensors", make_prompt_cache(model), model)
    done = call(memory, tmp_path / "b.safetensors")
    assert done.exit_code == 0 and done.stderr.startswith("Warning: ")
    assert "different adapters" in done.stderr and "different adapters" in done.stdout


def test_probe_reports_and_leaves_the_file(memory: Path, pair: list[str]) -> None:
    before = memory.read_bytes()
    asked = ["--probe", "What does Anna like?", "--phrasing", "Anna?", "--answer", "tea", "-m", "6"]
    value = found(memory, *pair, *asked)
    assert [p["phrasing"] for p in value["phrasings"]][::5] == ["What does Anna like?", "Anna?"]
    for phrasing in value["phrasings"]:
        assert phrasing["answers"][0]["source"].startswith("with")
        tea = phrasing["answers"][-1]
        assert (tea["text"], tea["given"]) == ("tea", True)
        assert tea["gain"] == pytest.approx(tea["log_prob"] - tea["log_prob_without"])
    assert [given["text"] for given in value["given"]] == ["tea"]
    text = call(memory, *pair, *asked, "--no-rephrase", "--numbers").stdout
    assert text.count("with memory") + text.count("with and without") == 2
    assert memory.read_bytes() == before


def test_trace_of_a_conversation(talk: Path, pair: list[str]) -> None:
    value = found("--trace", talk, *pair)
    assert [turn["role"] for turn in value["turns"]] == ["user", "assistant", "user"]
    assert value["marks"][-1] == value["turns"][-1]["end"] == value["tokens"]
    first = value["turns"][0]["retention"]
    assert first["similarity"][0] == first["contrast"][0] == first["survival"][0] == 1
    assert len(first["tokens_since"]) == len(first["survival"])
    text = call("--trace", talk, *pair, "--numbers").stdout
    assert "Now sort a list." in text and "written most" in text


def test_trace_of_a_text_by_token_from_a_memory(
    memory: Path, pair: list[str], tmp_path: Path
) -> None:
    before = memory.read_bytes()
    (tmp_path / "text.txt").write_text("First part.\n\nSecond part.")
    args = [memory, "--trace", tmp_path / "text.txt", "--by", "token", *pair]
    value = found(*args)
    by_token = value["by_token"]
    assert len(by_token["text"]) == len(by_token["write"]) == value["tokens"]
    assert "".join(by_token["text"]).count("First part.\n\nSecond part.") == 1
    assert [turn["text"] for turn in value["turns"]] == ["First part.", "Second part."]
    assert value["marks"][0] == 0 and value["start"]["retention"]["survival"][0] == 1
    lines = call(*args).stdout.splitlines()
    assert sum(line.startswith("        1  ") for line in lines) == value["turns"][0]["end"]
    assert memory.read_bytes() == before


def words(*args: str | Path) -> str:
    """What is said without figures."""
    done = call(*args)
    assert done.exit_code == 0, done.stderr
    assert "In figures: --numbers" in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory of the built-in pair that knows what ben does."""
    path = tmp_path_factory.mktemp("told") / "ben.safetensors"
    session = dm.MemorySession(*dm.load())
    session.remember("ben is a doctor .")
    session.save(path, note="of ben")
    return path


def test_a_probe_begins_with_what_it_says_and_what_the_model_says_without(told: Path) -> None:
    asked = [told, "--probe", "what is the job of ben ?"]
    first, *others = words(*asked, "--answer", "doctor", "--answer", "cook").splitlines()
    assert first == "It says 'ben is a doctor.'; without the memory 'ben is a... i do not know.'"
    assert others[0].startswith("Asked in 4 other ways it says the same ")
    assert re.search(
        r"^'doctor' is [\d,]+ times as likely with the memory, in the mean over 5 ways to ask; of "
        r"the 2 given it is the likeliest in [45]\.$",
        "\n".join(others),
        re.M,
    )
    assert re.search(r"^'cook' is [\d,.]+ times as unlikely with", "\n".join(others), re.M)
    unknown = words(told, "--probe", "hello .", "--no-rephrase")
    assert re.fullmatch(r"It says '.*', with the memory and without\.\n", unknown)


def test_a_memory_an_adapter_and_a_comparison_are_said_in_a_sentence(
    told: Path, tmp_path: Path
) -> None:
    said = words(told)
    assert re.match(r"\d+ tokens have been written into ben.safetensors: 3 layers of builtin", said)
    assert "'of ben'" in said
    assert f"inspect {told} --probe QUESTION" in call(told).stderr
    said = words(builtin.adapter_folder())
    assert "it writes every token to 2 states of 16 × 16 in each of 3 layers" in said
    assert "corrects q and o" in said
    assert "hold the same" in words(told, told)
    session = dm.MemorySession(*dm.load())
    session.save(tmp_path / "empty.safetensors")
    assert words(tmp_path / "empty.safetensors").startswith("empty.safetensors is empty")


def test_a_trace_says_what_was_written_most_strongly(tmp_path: Path) -> None:
    text = tmp_path / "facts.txt"
    text.write_text("anna lives in oslo .\n\nben is a doctor .")
    said = words("--trace", text)
    assert said.startswith("facts.txt: ")
    assert " tokens in 2 paragraphs, written to 3 layers." in said
    assert "Written most strongly: oslo, doctor." in said
    assert "Still in the memory at the end: " in said and "% of what paragraph 1 wrote" in said
    one = tmp_path / "one.txt"
    one.write_text("ben is a doctor .")
    assert "at the end" not in words("--trace", one)


def test_sequence_state_adapters_are_explained(
    qwen3_tiny: Path, talk: Path, tmp_path: Path
) -> None:
    adapter = GOLDEN / "ssw_message_mean" / "adapter"
    done = call("--trace", talk, "--model", qwen3_tiny, "--adapter", adapter)
    assert done.exit_code == 0 and "means over spans" in done.stderr


@pytest.mark.parametrize("what", ["adapter", "memory", "comparison", "probe", "trace"])
def test_pictures(
    what: str, adapter: Path, memory: Path, talk: Path, pair: list[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    args = {
        "adapter": [adapter],
        "memory": [memory],
        "comparison": [memory, memory],
        "probe": [memory, "--probe", "Who?", "--no-rephrase", "-m", "4", *pair],
        "trace": ["--trace", talk, *pair],
    }[what]
    path = tmp_path / "pictures" / "it.png"
    done = call(*args, "--plot", path)
    assert done.exit_code == 0 and str(path) in done.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert done.stdout


def test_pictures_without_matplotlib(run_cli: RunCli, memory: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')"
    )
    path = f"{ROOT}:{tmp_path}"
    done = run_cli("inspect", memory, "--plot", "it.png", env={"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.endswith("pip install 'deltamem-mlx[plot]'\n")
    assert run_cli("inspect", memory, env={"PYTHONPATH": path}).returncode == 0


def test_a_probe_of_a_session_folder(pair: list[str], memory: Path, tmp_path: Path) -> None:
    session = dm.MemorySession.restore(memory, *dm.load(pair[1], pair[3]))
    session.save(tmp_path / "session")
    asked = ["--probe", "Who?", "--no-rephrase", "-m", "4", *pair]
    a, b = (found(name, *asked)["phrasings"] for name in (memory, tmp_path / "session"))
    assert a == b


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "Say which memory"),
        (["--probe", "Who?"], "Say which memory"),
        (["MEMORY", "--probe", " "], "the question is empty"),
        (["MEMORY", "--probe", "Who?", "--trace", "TALK"], "give one of them"),
        (["MEMORY", "MEMORY", "--probe", "Who?"], "--probe takes one memory"),
        (["MEMORY", "MEMORY", "MEMORY"], "extra argument"),
        (["MEMORY", "--answer", "x", "--phrasing", "y"], "--phrasing, --answer: only"),
        (["MEMORY", "--by", "token"], "--by: only"),
        (["TALK"], "is a text; expected an adapter or a memory file"),
        (["MEMORY", "TALK"], "is a text; expected"),
        (["--trace", "TALK", "--by", "word"], "word"),
        (["MEMORY", "--plot", "it.jpg.txt"], "expected one of"),
        (["ADAPTER", "MEMORY"], "not of a saved session"),
        (["MEMORY", "--probe", "Who?", "--model", "MODEL"], "Give --adapter"),
        (["--trace", "TALK", "--chat-template-config", "[]"], "expected a JSON object"),
        (["MEMORY", "--conversation", "-1"], "'--conversation'"),
    ],
)
def test_wrong_use(
    args: list[str], said: str, memory: Path, adapter: Path, talk: Path, qwen3_tiny: Path
) -> None:
    names = {"MEMORY": memory, "ADAPTER": adapter, "TALK": talk, "MODEL": qwen3_tiny}
    if "it.jpg.txt" in args:
        pytest.importorskip("matplotlib")
    done = call(*(names.get(arg, arg) for arg in args))
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and said in done.stderr
    assert "Traceback" not in done.stderr


def test_what_is_not_there_or_damaged(
    memory: Path, qwen3_tiny: Path, pair: list[str], talk: Path, tmp_path: Path
) -> None:
    cut, foreign = tmp_path / "cut.safetensors", tmp_path / "foreign.safetensors"
    cut.write_bytes(memory.read_bytes()[:-9])
    save_file({}, foreign)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bad.jsonl").write_text('{"role": "user"}')
    other = ["--model", str(qwen3_tiny), "--adapter", str(GOLDEN / "tsw_qo" / "adapter")]
    for args, said in (
        (["none.safetensors"], "No memory file 'none.safetensors'"),
        (["./none"], "No folder './none'"),
        ([cut], "cut.safetensors"),
        ([foreign], "not a memory saved by this package"),
        ([memory, foreign], "not a memory saved by this package"),
        ([qwen3_tiny], "neither delta_mem_config.json"),
        ([memory, "--conversation", "1"], "conversation 1 is not there"),
        ([memory, "--probe", "Who?", *other], "under another adapter"),
        ([memory, "--trace", talk, *other], "under another adapter"),
        (["--trace", tmp_path / "none.txt", *pair], "none.txt"),
        (["--trace", tmp_path / "empty.txt", *pair], "empty"),
        (["--trace", tmp_path / "bad.jsonl", *pair], "content: missing"),
    ):
        done = call(*args)
        assert (done.exit_code, done.stdout) == (1, ""), args
        assert done.stderr.startswith("Error: ") and said in done.stderr, done.stderr


def test_a_config_file_and_quiet(
    run_cli: RunCli, memory: Path, pair: list[str], tmp_path: Path
) -> None:
    shutil.copy(memory, tmp_path / "m.safetensors")
    (tmp_path / "ask.yaml").write_text(
        f"probe: Who?\nrephrase: false\nanswer: [tea, cake]\nmodel: {pair[1]}\nadapter: {pair[3]}\n"
        "max-tokens: 4\njson: true\n"
    )
    done = run_cli("inspect", "m.safetensors", "-c", "ask.yaml", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert [given["text"] for given in json.loads(done.stdout)["given"]] == ["tea", "cake"]


def test_a_folder_is_read_as_remember_reads_it(tmp_path: Path) -> None:
    notes, memory = tmp_path / "notes", tmp_path / "me.safetensors"
    notes.mkdir()
    for name, fact in (("a.txt", "anna lives in oslo ."), ("b.txt", "ben is a doctor .")):
        (notes / name).write_text(fact)
    told = CliRunner().invoke(app, ["remember", str(notes), "--memory", str(memory)])
    assert told.exit_code == 0, told.stderr
    for flag in ("--told", "--trace"):
        done = CliRunner().invoke(app, ["inspect", str(memory), flag, str(notes)])
        assert done.exit_code == 0 and "notes" in done.stdout, done.stderr
        gone = CliRunner().invoke(app, ["inspect", str(memory), flag, "gone.txt"])
        assert "gone.txt" in gone.stderr
