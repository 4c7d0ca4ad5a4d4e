"""`deltamem-mlx eval`: tables and JSON of a tiny model, runs that go on, and wrong use."""

import json
import shutil
import sys
from pathlib import Path

import mlx_lm
import pytest
from benchmarks import LOCOMO, written
from byte_model import byte_pair
from conftest import RunCli
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals.recall.builtin_data import EPISODES
from deltamem_mlx.evals.recall.episodes import read_episodes, write_episodes
from deltamem_mlx.evals.recall.facts import fact_episodes
from deltamem_mlx.evals.recall.recall import CONDITIONS
from deltamem_mlx.evals.runner import Runner

PLACES = (("Al", "Rome"), ("Bo", "Bonn"), ("Cy", "Oslo"))
SHORT = ("--facts", "1", "--limit", "2", "-m", "3", "--batch-size", "4")


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


@pytest.fixture
def pair(qwen3_tiny: Path, adapter: Path) -> tuple[str, ...]:
    return ("--model", str(qwen3_tiny), "--adapter", str(adapter))


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def result_of(*args: str | Path) -> dict:
    done = call(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def measured(*args: str | Path) -> dict:
    return result_of("recall", *args)


def test_group_lists_its_tasks() -> None:
    done = call()
    assert done.exit_code == 0
    assert "recall" in done.stdout


def test_made_up_facts_are_the_default_of_a_model(pair: tuple[str, ...]) -> None:
    found = measured(*pair, *SHORT)
    assert [(c["kind"], c["facts"], c["questions"]) for c in found["cells"]] == [
        ("told", 1, 2),
        ("updated", 1, 2),
        ("never", 1, 2),
    ]
    assert (found["task"], found["data"], found["questions"]) == ("recall", "facts", 6)
    assert "chat_template_config" not in found, "folders of before go on"
    for cell in found["cells"]:
        assert list(cell["conditions"]) == found["conditions"] == list(CONDITIONS)
        assert cell["conditions"]["reloaded"] == cell["conditions"]["memory"]
        assert list(cell["differences"]) == ["foreign", "mean", "retrieved", "context"]
        for found_by in (cell["gain"], *cell["differences"].values()):
            assert found_by["low"] <= found_by["difference"] <= found_by["high"]
        assert ("as_plain" in cell) == (cell["kind"] == "never")
    other = measured(*pair, *SHORT, "--kind", "told", "--condition", "none", "--seed", "1")
    assert other["episodes"] != found["episodes"]


def test_table_has_what_json_has(pair: tuple[str, ...], tmp_path: Path) -> None:
    done = call("recall", *pair, *SHORT, "--condition", "none", "--condition", "memory")
    assert done.exit_code == 0
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0][:6] == ["kind", "facts", "distractors", "questions", "memory", "none"]
    told = next(line for line in lines if line[:1] == ["told"])
    assert told[:4] == ["told", "1", "0", "2"]
    assert "6 questions, 12 answers" in done.stderr
    quiet = call("recall", *pair, *SHORT, "--condition", "none", "--quiet")
    assert (quiet.exit_code, quiet.stderr) == (0, "")


def test_own_episodes(pair: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl.gz"
    write_episodes(path, fact_episodes(3, seed=9))
    found = measured(*pair, "--data", path, *SHORT, "--kind", "never", "--condition", "none")
    assert [(c["kind"], c["facts"], c["questions"]) for c in found["cells"]] == [("never", 1, 2)]
    path = tmp_path / "bad.jsonl"
    path.write_text('{"tell": []}\n')
    done = call("recall", *pair, "--data", path)
    assert done.exit_code == 1
    assert f"{path}:1: tell: empty" in done.stderr


def test_facts_of_ones_own(pair: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    facts = [{"tell": f"{n} is in {c}.", "ask": f"Where is {n}?", "value": c} for n, c in PLACES]
    path.write_text(json.dumps(facts))
    short = ("-m", "2", "--condition", "memory", "--condition", "none")
    found = measured(*pair, "--holdout", path, *short)
    assert [(c["kind"], c["facts"], c["questions"]) for c in found["cells"]] == [
        *(("told", facts, 3) for facts in (1, 2)),
        *(("never", facts, 3) for facts in (1, 2)),
    ]
    assert (found["data"], found["questions"]) == (str(path), 12)
    found = measured(*pair, "--holdout", path, *short, "--facts", "3", "--limit", "2")
    assert [(c["kind"], c["facts"], c["questions"]) for c in found["cells"]] == [("told", 3, 2)]
    for more, code, said in (
        (("--data", "facts"), 2, "--data and --holdout: give one of them."),
        (("--facts", "4"), 2, f"leave none of the episodes of '{path}'"),
    ):
        done = call("recall", *pair, "--holdout", path, *more)
        assert (done.exit_code, done.stdout) == (code, "") and said in done.stderr
    path.write_text('[{"tell": "a", "ask": "b"}]')
    done = call("recall", *pair, "--holdout", path)
    assert done.exit_code == 1 and "fact 0: value: missing (expected text)" in done.stderr


def test_a_model_that_can_think_is_asked_without_and_that_is_kept(tmp_path: Path) -> None:
    model, _ = byte_pair(tmp_path / "base", thinks=True)
    dm.save_adapter(model, tmp_path / "adapter")
    pair = ("--model", tmp_path / "base", "--adapter", tmp_path / "adapter", "--limit", "1")
    asked = tmp_path / "asked.txt"
    asked.write_text("Why?")
    talks = written(tmp_path / "locomo.json", LOCOMO)
    thinking = ("--chat-template-config", '{"enable_thinking": true}')
    for number, args in enumerate(
        (
            ("recall", "--facts", "1", "--kind", "told", "--condition", "none", "-m", "2"),
            ("silence", "--data", asked, "--histories", "1", "--chat-tokens", "9"),
            ("locomo", talks, "--no-context", "--condition", "none"),
        )
    ):
        out = tmp_path / str(number)
        found = result_of(*args, *pair, "--out", out)
        assert found["chat_template_config"] == {"enable_thinking": False}
        assert result_of(*args, *pair, "--out", out) == found
        other = call(*args, *pair, "--out", out, *thinking)
        assert other.exit_code == 1 and "chat_template_config" in other.stderr
        run = json.loads((out / "run.json").read_text()) | {"chat_template_config": {}}
        (out / "run.json").write_text(json.dumps(run))
        assert call(*args, *pair, "--out", out).exit_code == 1, "as it was asked before"
        found = result_of(*args, *pair, *thinking)
        assert found["chat_template_config"] == {"enable_thinking": True}


def test_without_a_retriever_its_column_is_left_out(
    pair: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bm25s", None)
    short = (*pair, *SHORT, "--kind", "told")
    done = call("recall", *short, "--json")
    assert done.exit_code == 0 and "No retrieved text." in done.stderr
    assert "retrieved" not in json.loads(done.stdout)["conditions"]
    done = call("recall", *short, "--condition", "retrieved")
    assert done.exit_code == 2 and "pip install 'deltamem-mlx[eval]'" in done.stderr


def test_folder_keeps_answers_and_the_same_command_goes_on(
    pair: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    options = (*pair, *SHORT, "--condition", "memory", "--condition", "none", "--out", out)
    ask, asked = Runner.ask, []

    def fails(self: Runner, conversations: list, states: list | None = None) -> list[str]:
        asked.append(len(conversations))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return ask(self, conversations, states)

    monkeypatch.setattr(Runner, "ask", fails)
    stopped = call("recall", *options)
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "the same command goes on" in stopped.stderr
    assert len((out / "questions.jsonl").read_text().splitlines()) == 2

    found = measured(*options)
    assert asked == [2, 2, 2, 2, 2, 2, 2], "two cells of three, under two conditions"
    rows = [json.loads(line) for line in (out / "questions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(6))
    assert json.loads((out / "result.json").read_text()) == found
    assert measured(*options) == found
    assert len(asked) == 7
    monkeypatch.undo()
    whole = measured(*options[:-2])
    assert whole == found

    other = call("recall", *options, "--seed", "4")
    assert other.exit_code == 1
    assert "seed: 0 there, 4 now" in other.stderr


def test_built_in_pair_is_the_default(
    qwen3_tiny: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(qwen3_tiny, tmp_path / "base")
    shutil.copytree(adapter, tmp_path / "adapter")
    write_episodes(tmp_path / EPISODES, fact_episodes(2, seed=3))
    monkeypatch.setattr(builtin, "__file__", str(tmp_path / "__init__.py"))
    monkeypatch.setattr(builtin, "_HERE", tmp_path)
    found = measured(*SHORT, "--kind", "told", "--condition", "none")
    assert (found["model"], found["adapter"], found["data"]) == ("builtin",) * 3
    assert found["questions"] == 2
    own = ("--model", tmp_path / "base", "--adapter", tmp_path / "adapter", "--kind", "told")
    assert measured(*own, *SHORT, "--condition", "none")["data"] == "builtin", "another adapter"
    own = ("--model", tmp_path / "base", "--adapter", tmp_path / "adapter", "--kind", "told")
    assert measured(*own, *SHORT, "--condition", "none")["data"] == "builtin", "another adapter"
    assert len(read_episodes(tmp_path / EPISODES)) > 2
    (tmp_path / EPISODES).unlink()
    done = call("recall")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {EPISODES} of the built-in demo pair is not in this")


def test_the_model_that_the_adapter_names_is_recorded(
    qwen3_tiny: Path, adapter: Path, tmp_path: Path
) -> None:
    model, _ = dm.load(str(qwen3_tiny), adapter)
    dm.save_adapter(model, tmp_path / "named")
    short = ("--adapter", tmp_path / "named", *SHORT, "--kind", "told", "--condition", "none")
    found = measured(*short)
    assert (found["model"], found["adapter"]) == (str(qwen3_tiny), str(tmp_path / "named"))
    done = call("recall", *short, "--also-model", tmp_path / "other")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "--also-model: give the first model by --model, too." in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--condition", "foreigner"), "--condition: 'foreigner'; expected one of memory, none,"),
        (("--kind", "new"), "--kind: 'new'; expected one of told,"),
        (("--facts", "3"), "--kind and --facts leave none of the episodes of 'facts'."),
        (("--limit", "0"), "--limit"),
        (("--batch-size", "0"), "--batch-size"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_wrong_use(pair: tuple[str, ...], args: tuple[str, ...], said: str) -> None:
    done = call("recall", *pair, *args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_model_without_adapter_is_wrong_use(qwen3_tiny: Path) -> None:
    done = call("recall", "--model", qwen3_tiny)
    assert done.exit_code == 2
    assert "has no memory. Give --adapter." in done.stderr


def test_process(run_cli: RunCli, pair: tuple[str, ...]) -> None:
    done = run_cli("eval", "recall", *pair, *SHORT, "--kind", "told", "--condition", "none")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:2] == ["kind", "facts"]
    assert "2 questions, 2 answers" in done.stderr
