"""`deltamem-mlx eval` on benchmarks: tables, JSON, several models, going on, and wrong use."""

import json
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import pytest
from benchmarks import AGENT, HOTPOTQA, LOCOMO, LONGMEM, written
from conftest import RunCli
from hub_server import HubServer
from tiny import tiny_model_folder
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.evals.benchmarks.reader import Reader
from deltamem_mlx.evals.recall.recall import CONDITIONS as RECALL_CONDITIONS
from deltamem_mlx.files import locked_folder
from deltamem_mlx.views.scores import as_text, group_tables, score_tables

Pair = tuple[str, ...]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A model, the same in 4 bits, and an adapter for both."""
    folder = tmp_path_factory.mktemp("models")
    dense = tiny_model_folder(folder / "dense", max_position_embeddings=2048)
    small = tiny_model_folder(folder / "small", max_position_embeddings=2048, bits=4)
    model, _ = mlx_lm.load(str(dense))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=4.0), seed=1)
    dm.save_adapter(model, folder / "adapter")
    return dense, small, folder / "adapter"


@pytest.fixture
def pair(models: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> Pair:
    answers = Reader.answers

    def short(self: Reader, asked: list, *, one_line: bool) -> list[str]:
        return answers(self, [a._replace(max_tokens=3) for a in asked], one_line=one_line)

    monkeypatch.setattr(Reader, "answers", short)
    return ("--model", str(models[0]), "--adapter", str(models[2]))


@pytest.fixture
def locomo(tmp_path: Path) -> Path:
    return written(tmp_path / "locomo.json", LOCOMO)


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["eval", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def measured(*args: str | Path) -> dict:
    done = call(*args, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


def test_locomo_has_every_category_with_and_without_the_last(pair: Pair, locomo: Path) -> None:
    found = measured("locomo", locomo, *pair)
    assert [(line["group"], line["questions"]) for line in found["groups"]] == [
        ("1 multi-hop", 1),
        ("2 temporal", 1),
        ("3 open-domain", 1),
        ("4 single-hop", 2),
        ("5 adversarial", 1),
        ("1 to 4", 5),
        ("1 to 5", 6),
    ]
    for line in found["groups"]:
        assert list(line["scores"]) == found["conditions"] == ["memory", "none", "shuffled"]
        assert list(line["differences"]) == ["memory", "shuffled"]
    assert (found["task"], found["no_context"], found["max_context"]) == ("locomo", False, 2048)


@pytest.mark.parametrize("alone", [(), ("--no-context",)], ids=["context", "alone"])
def test_longmemeval_has_updates_and_abstention(
    pair: Pair, tmp_path: Path, alone: tuple[str, ...]
) -> None:
    found = measured("longmemeval", written(tmp_path / "l.json", LONGMEM), *pair, *alone)
    assert [(g["metric"], g["group"], g["questions"]) for g in found["groups"]] == [
        ("score", "knowledge-update", 1),
        ("score", "multi-session", 1),
        ("score", "single-session-preference", 1),
        ("score", "abstention", 1),
        ("score", "all", 3),
        ("F1", "knowledge-update", 1),
        ("F1", "multi-session", 1),
        ("F1", "single-session-preference", 1),
        ("F1", "all", 2),
    ]
    for line in found["groups"]:
        assert list(line["scores"]) == found["conditions"] == ["memory", "none", "shuffled"]


def test_mean_memories_and_found_text_are_there_on_request(pair: Pair, locomo: Path) -> None:
    more = ("--condition", "memory", "--condition", "mean", "--condition", "retrieved")
    found = measured("locomo", locomo, *pair, *more)
    assert found["conditions"] == ["memory", "mean", "retrieved"]
    assert all(list(line["scores"]) == found["conditions"] for line in found["groups"])
    done = call("locomo", locomo, *pair, *more, "--no-context")
    assert done.exit_code == 2 and "'retrieved' needs the context" in done.stderr
    done = call("locomo", locomo, *pair, *more[:4], "--no-context")
    assert "mean: the mean of the memories of all other materials" in done.stdout


def test_table_says_what_it_measured(pair: Pair, locomo: Path) -> None:
    done = call("locomo", locomo, *pair, "--no-context", "--limit", "2")
    assert done.exit_code == 0, done.stderr
    assert "memory − none" in done.stdout and "1 to 5" in done.stdout
    assert "its context was dropped" in done.stdout and "greedy" in done.stdout
    assert "2 questions, 6 answers" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_conversations_and_limit(pair: Pair, locomo: Path) -> None:
    only = ("--no-context", "--condition", "none")
    assert measured("locomo", locomo, *pair, *only, "--conversations", "1")["questions"] == 5
    assert measured("locomo", locomo, *pair, *only, "--limit", "3")["questions"] == 3
    one = written(locomo.parent / "one.json", LOCOMO[:1])
    done = call("locomo", one, *pair, "--no-context", "--limit", "1")
    assert (done.exit_code, "No shuffled memory" in done.stderr) == (0, True)
    assert "shuffled" not in done.stdout


def test_same_seed_same_result_and_a_folder_goes_on(
    pair: Pair, locomo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("locomo", locomo, *pair, "--no-context", "--limit", "4", "--batch-size", "2")
    answers, asked = Reader.answers, []

    def stops(self: Reader, questions: list, *, one_line: bool) -> list[str]:
        asked.append(len(questions))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answers(self, questions, one_line=one_line)

    monkeypatch.setattr(Reader, "answers", stops)
    stopped = call(*args, "--out", tmp_path / "run")
    assert (stopped.exit_code, stopped.stdout) == (130, "")
    assert "the same command goes on" in stopped.stderr
    found = measured(*args, "--out", tmp_path / "run")
    assert len(asked) == 4 + 3, "six batches, of which three were there"
    assert measured(*args, "--out", tmp_path / "run") == found
    assert len(asked) == 7
    monkeypatch.setattr(Reader, "answers", answers)
    assert measured(*args) == found
    rows = [json.loads(x) for x in (tmp_path / "run" / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 12
    assert {"question", "answer", "said", "scores", "condition"} <= rows[0].keys()
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found
    other = call(*args, "--out", tmp_path / "run", "--seed", "1")
    assert other.exit_code == 1
    assert "seed: 0 there, 1 now" in other.stderr


def test_several_models_side_by_side(
    pair: Pair, models: tuple[Path, Path, Path], locomo: Path, tmp_path: Path
) -> None:
    args = ("locomo", locomo, *pair, "--no-context", "--limit", "2")
    also = ("--also-model", models[1], "--out", tmp_path / "run")
    found = measured(*args, *also)
    assert [Path(result["model"]).name for result in found["models"]] == ["dense", "small"]
    assert found["questions"] == 2
    alone = measured(*args)
    assert found["models"][0]["groups"] == alone["groups"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == [
        *(".lock", "0-dense", "1-small", "result.json")
    ]
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == found
    lines = call(*args, *also).stdout.splitlines()
    assert [line.split()[0] for line in lines if " 1 to 5 " in line] == ["dense", "small"]


def test_a_result_of_other_models_is_not_replaced(
    pair: Pair, models: tuple[Path, Path, Path], locomo: Path, tmp_path: Path
) -> None:
    args = ("locomo", locomo, *pair, "--no-context", "--limit", "1")
    also = ("--also-model", models[1])
    one, mine = tmp_path / "one", tmp_path / "mine"
    measured(*args, "--out", one)
    mine.mkdir()
    (mine / "result.json").write_text('{"mine": 1}')
    for out, said in ((one, "holds an evaluation of one model"), (mine, "is of something else")):
        before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
        done = call(*args, *also, "--out", out)
        assert (done.exit_code, done.stdout) == (1, "")
        assert said in done.stderr and "Give another folder" in done.stderr
        assert before.items() <= {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}.items()


def test_two_evaluations_do_not_share_a_folder(pair: Pair, locomo: Path, tmp_path: Path) -> None:
    with locked_folder(tmp_path / "run", "another eval"):
        done = call("locomo", locomo, *pair, "--out", tmp_path / "run")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "run is in use by another eval" in done.stderr
    taken = written(tmp_path / "taken", LOCOMO)
    done = call("locomo", locomo, *pair, "--out", taken)
    assert (done.exit_code, done.stdout) == (1, "")
    assert str(taken) in done.stderr.replace("\n", "")


def test_recall_on_several_models(pair: Pair, models: tuple[Path, Path, Path]) -> None:
    short = ("--facts", "1", "--kind", "told", "--limit", "2", "-m", "2", "--also-model", models[1])
    found = measured("recall", *pair, *short)
    assert [len(result["cells"]) for result in found["models"]] == [1, 1]
    done = call("recall", *pair, *short)
    assert done.exit_code == 0
    lines = [line.split()[:1] for line in done.stdout.splitlines()]
    assert lines.count(["dense"]) == lines.count(["small"]) == 4, "shares and differences, halved"
    assert "4 questions, 28 answers" in done.stderr


def test_hotpotqa(pair: Pair, tmp_path: Path) -> None:
    path = written(tmp_path / "hotpot.json", HOTPOTQA)
    found = measured("hotpotqa", path, *pair)
    assert [(x["metric"], x["group"]) for x in found["groups"]] == [
        (metric, group)
        for metric in ("exact match", "F1")
        for group in ("level easy", "level hard", "type bridge", "type comparison", "all")
    ]


def test_memoryagentbench(pair: Pair, tmp_path: Path) -> None:
    path = written(tmp_path / "agent.json", AGENT)
    found = measured("memoryagentbench", path, *pair, "--source", "factconsolidation")
    assert found["sources"] == ["factconsolidation"]
    assert {line["group"] for line in found["groups"]} == {"SF", "SF factconsolidation_sh", "all"}
    both = measured("memoryagentbench", path, *pair, "--no-context", "--condition", "memory")
    assert both["questions"] == 3


def test_built_in_pair_reads_what_it_has_no_words_for(
    locomo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Reader.answers
    monkeypatch.setattr(
        Reader,
        "answers",
        lambda self, asked, *, one_line: answers(
            self, [a._replace(max_tokens=2) for a in asked], one_line=one_line
        ),
    )
    found = measured("locomo", locomo, "--limit", "2", "--max-context", "2000")
    assert (found["model"], found["questions"]) == ("builtin", 2)


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("locomo", "none.json"), 1, "No file 'none.json'. Check the path."),
        (("locomo", "{locomo}", "--condition", "reloaded"), 2, "expected one of memory, none, shu"),
        (("locomo", "{locomo}", "--limit", "0"), 2, "--limit"),
        (("locomo", "{locomo}", "--seed", "-1"), 2, "--seed"),
        (("locomo", "{locomo}", "--seed", "4294967296"), 2, "--seed"),
        (("locomo", "{locomo}", "--max-context", "100"), 1, "Raise --max-context"),
        (("locomo", "{locomo}", "--also-model", "{model}"), 2, "is given twice"),
        (("hotpotqa", "{locomo}"), 1, "has another schema"),
        (("memoryagentbench", "{locomo}"), 1, "has another schema"),
    ],
)
def test_wrong_use(pair: Pair, locomo: Path, args: tuple[str, ...], code: int, said: str) -> None:
    done = call(*(arg.format(locomo=locomo, model=pair[1]) for arg in args), *pair)
    assert (done.exit_code, done.stdout) == (code, "")
    assert said in done.stderr


def test_no_adapter_is_wrong_use(pair: Pair, locomo: Path) -> None:
    done = call("locomo", locomo, *pair[:2])
    assert done.exit_code == 2
    assert "has no memory. Give --adapter." in done.stderr


def test_missing_extra_is_said_before_anything_is_loaded(
    locomo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "snowballstemmer", None)
    monkeypatch.setattr(mx, "load", None)
    done = call("locomo", locomo)
    assert done.exit_code == 1
    assert "pip install 'deltamem-mlx[eval]'" in done.stderr


def test_data_from_the_hub(
    hub: HubServer, run_cli: RunCli, models: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "set").mkdir()
    written(tmp_path / "set" / "locomo10.json", LOCOMO)
    hub.add("user/locomo", tmp_path / "set", repo_type="dataset")
    args = ("--model", models[0], "--adapter", models[2], "--no-context", "--limit", "1", "--json")
    env = hub.env(tmp_path / "home")
    done = run_cli("eval", "locomo", "user/locomo", *args, "--condition", "none", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["questions"] == 1


NUMBERS = {"accuracy": 0.99, "low": 0.98, "high": 1.0, "correct": 99}
CELL = {
    "kind": "heldout_wording",
    "facts": 16,
    "distractors": 12,
    "questions": 1024,
    "conditions": dict.fromkeys(RECALL_CONDITIONS, NUMBERS),
    "gain": {"difference": 0.99, "low": 0.98, "high": 1.0},
    "differences": {
        name: {"difference": 0.99, "low": 0.98, "high": 1.0}
        for name in ("foreign", "mean", "retrieved", "context")
    },
    "as_plain": dict.fromkeys(list(RECALL_CONDITIONS)[2:], NUMBERS),
    "newest": {"memory": {"newest": 100, "answered": 100}},
}
LINE = {
    "metric": "score",
    "group": "3 open-domain",
    "questions": 1986,
    "scores": dict.fromkeys(["memory", "none", "shuffled"], 0.5),
    "differences": dict.fromkeys(["memory", "shuffled"], CELL["gain"]),
}


@pytest.mark.parametrize(
    "tables",
    [
        lambda: score_tables([{"model": "m", "cells": [CELL]}], list(CELL["conditions"])),
        lambda: [t for _, t in group_tables([{"model": "m", "groups": [LINE]}], LINE["scores"])],
    ],
    ids=["recall", "benchmarks"],
)
def test_tables_are_not_wider_than_100_columns(tables: Callable) -> None:
    for table in tables():
        assert max(map(len, as_text(table).splitlines())) <= 100
