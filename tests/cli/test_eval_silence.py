"""`deltamem-mlx eval silence`: its table, questions of one's own, wrong use."""

import json
from pathlib import Path

import mlx_lm
import pytest
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app

SHORT = ("--histories", "2", "--chat-tokens", "40")


@pytest.fixture(scope="module")
def pair(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = mlx_lm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return ("--model", str(qwen3_tiny), "--adapter", str(folder))


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", "silence", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def test_a_row_for_each_kind_of_question(pair: tuple[str, ...], tmp_path: Path) -> None:
    done = call(*pair, *SHORT, "--limit", "2", "--json", "--out", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert [line["kind"] for line in found["scores"]][-2:] == ["talk", "all"]
    assert (found["task"], found["questions"], len(found["scores"])) == ("silence", 16, 9)
    for line in found["scores"]:
        for history in ("facts", "chat"):
            assert 0 <= line[history]["low"] <= line[history]["nats"] <= line[history]["high"]
    assert found["scores"][-1]["facts"]["nats"] > 0
    assert len((tmp_path / "out" / "questions.jsonl").read_text().splitlines()) == 32
    table = call(*pair, *SHORT, "--limit", "2", "--out", tmp_path / "out")
    assert table.stdout.split()[:5] == ["questions", "on", "n", "facts", "chat"]
    assert max(map(len, table.stdout.splitlines())) <= 100
    other = call(*pair, *SHORT, "--limit", "1", "--out", tmp_path / "out")
    assert other.exit_code == 1 and "holds another evaluation" in other.stderr


def test_questions_of_ones_own(pair: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("Wie spät ist es?\n\n Wer bist du? \nWer bist du?\n")
    found = json.loads(call(*pair, *SHORT, "--data", path, "--json").stdout)
    assert found["asked"] == {"own": ["Wie spät ist es?", "Wer bist du?"]}
    assert [line["kind"] for line in found["scores"]] == ["own", "all"]
    path.write_text(" \n")
    done = call(*pair, "--data", path)
    assert done.exit_code == 2 and "has no questions; expected one a line." in done.stderr
    done = call(*pair, "--data", tmp_path / "no.txt")
    assert done.exit_code == 1 and "no.txt" in done.stderr


def test_built_in_pair_is_the_default() -> None:
    done = call(*SHORT, "--limit", "2", "--json")
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["model"], found["questions"]) == ("builtin", 2)


@pytest.mark.parametrize("option", ["--limit", "--histories", "--chat-tokens"])
def test_wrong_use(pair: tuple[str, ...], option: str) -> None:
    done = call(*pair, option, "0")
    assert done.exit_code == 2 and option in done.stderr


def test_model_without_adapter_is_wrong_use(qwen3_tiny: Path) -> None:
    done = call("--model", qwen3_tiny)
    assert done.exit_code == 2 and "has no memory. Give --adapter." in done.stderr
