"""Every command under mlx.launch: it says what it says in one process, or that it is for one."""

import json
import re
from pathlib import Path

import pytest
from benchmarks import HOTPOTQA, LOCOMO, LONGMEM, written
from conftest import ROOT
from forked import Nursery
from launching import launch
from tiny import strong_pair, tiny_model_folder
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app

FOR_ONE = [["memories"], ["bench"], ["inspect"], ["demo"], ["config"], ["eval", "lm"]]
FOR_ONE += [["convert", "a", "b"], ["upload", "a", "--repo", "a/b"]]


@pytest.fixture
def commands(tmp_path: Path) -> list[list[str]]:
    """Those that take a model in several processes, each as short as can be."""
    tiny_model_folder(
        tmp_path / "model", "qwen3_moe", num_hidden_layers=4, max_position_embeddings=4096
    )
    lower = strong_pair(tmp_path / "model", layers=(0, 1))[0]  # a first process without a memory
    dm.save_adapter(lower, tmp_path / "adapter")
    pair = ["--model", str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter")]
    (tmp_path / "book.txt").write_text("I am Ann.\n\nI have a cat.\n\n" * 20)
    files = [
        ("locomo", written(tmp_path / "locomo.json", LOCOMO)),
        ("hotpotqa", written(tmp_path / "hotpotqa.json", HOTPOTQA)),
        ("longmemeval", written(tmp_path / "longmemeval.json", LONGMEM)),
    ]
    few = ["--limit", "1", "--condition", "memory", "--json"]
    evals = [["eval", name, str(file), *pair, *few] for name, file in files]
    evals += [["eval", "perplexity", str(tmp_path / "book.txt"), *pair, "--limit", "2", "--json"]]
    short = ["--histories", "1", "--chat-tokens", "60"]
    evals += [["eval", "silence", *pair, "--limit", "1", *short, "--json"]]
    told = ["remember", str(tmp_path / "book.txt"), *pair, "--memory"]
    return [*evals, [*told, str(tmp_path / "me.safetensors")]]


@pytest.mark.slow
def test_each_command_says_what_it_says_in_one_process_or_that_it_is_for_one(
    commands: list[list[str]], tmp_path: Path, nursery: Nursery
) -> None:
    alone = [CliRunner().invoke(app, words) for words in commands]
    (tmp_path / "me.safetensors").unlink()
    launched = [[*words, "--pipeline"] for words in commands]
    (tmp_path / "words.json").write_text(json.dumps([*FOR_ONE, *launched]))
    program = ROOT / "tests/helpers/spread_commands_run.py"
    done = launch(nursery, program, tmp_path / "words.json", tmp_path / "said.json", timeout=550)
    assert (tmp_path / "said.json").exists(), done.stderr[-3000:]
    found = json.loads((tmp_path / "said.json").read_text())
    for words, (code, out, _) in zip(FOR_ONE, found, strict=False):
        assert (words, code, out) == (words, 2, "")
    for one, words, (code, out, notes) in zip(alone, commands, found[len(FOR_ONE) :], strict=True):
        assert one.exit_code == code == 0, (words, one.output, notes)
        assert untimed(out) == untimed(one.stdout), words


def untimed(said: str) -> str:
    """What is said, without how long it took."""
    return re.sub(r"[\d.]+ s \([\d,]+ a second\)", "", said)
