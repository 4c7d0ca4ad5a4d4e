"""Commands under mlx.launch: what one process says and keeps, said and kept once."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from forked import Nursery
from launching import launch, started
from tiny import strong_pair, tiny_model_folder
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.memory.file import read_memory

ONE_PROCESS = (sys.executable, "-m", "deltamem_mlx")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a model and its adapter."""
    folder = tmp_path_factory.mktemp("pair")
    tiny_model_folder(folder / "model", "qwen3_moe", num_hidden_layers=4)
    lower = strong_pair(folder / "model", layers=(0, 1))[0]  # a first process without a memory
    dm.save_adapter(lower, folder / "adapter")
    return ["--model", str(folder / "model"), "--adapter", str(folder / "adapter")]


def alone(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*ONE_PROCESS, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_generate_says_what_one_process_says(
    pair: list[str], tmp_path: Path, nursery: Nursery
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("I am Ann.\n\nI have a cat.")
    words = ["generate", "Who?", *pair, "-m", "12", "--remember", notes, "--memory"]
    said = alone(*words, tmp_path / "one.safetensors").stdout
    assert len(said) > 8
    for flags in ([], ["--pipeline"]):
        file = tmp_path / f"several{len(flags)}.safetensors"
        done = launch(nursery, "-m", "deltamem_mlx", *words, file, *flags, timeout=120)
        assert done.stdout == said, done.stderr
        assert done.stderr.count("Remembered") == done.stderr.count("Saved the memory") == 1
        one, several = read_memory(tmp_path / "one.safetensors"), read_memory(file)
        for layer, state in one.states.items():
            limit = 0 if flags else 1e-5 * np.abs(state).max()
            assert np.abs(state - several.states[layer]).max() <= limit
    again = alone("generate", "And you?", *pair, "--memory", file, "-m", "4")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_chat_answers_what_one_process_answers(pair: list[str], tmp_path: Path) -> None:
    lines = [
        "Hi",
        f"/save {tmp_path}/session",
        "/undo",
        "/probe Who?",
        f"/load {tmp_path}/session --x",
        f"/load {tmp_path}/session",
        "And you?",
        "q",
    ]
    words = ["chat", *pair, "-m", "6"]
    done = subprocess.run(
        [*ONE_PROCESS, *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        timeout=120,
    )
    with started("-m", "deltamem_mlx", *words, "--pipeline", fused=True) as program:
        assert program.stdin is not None
        program.stdin.write("\n".join(lines) + "\n")
        program.stdin.flush()
        said, notes = program.communicate(timeout=120)
    assert said == done.stdout, notes
    assert notes.count("loaded") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["generate", "Hi", "PAIR", "--remember", "NOTHING"], "NOTHING"),
        (["generate", "Hi", "-m", "4"], "The built-in pair is for one process"),
        (["generate", "-", "PAIR"], "standard input has no end"),
        (["bench", "PAIR"], "for one process"),
        (["generate", "Hi", "PAIR", "--memory", "NOTHING/x.txt"], "x.txt"),
    ],
)
def test_what_is_wrong_is_said_once(
    words: list[str], expected: str, pair: list[str], nursery: Nursery
) -> None:
    flags = [flag for word in words for flag in (pair if word == "PAIR" else [word])]
    done = launch(nursery, "-m", "deltamem_mlx", *flags, timeout=120)
    assert not done.stdout
    assert done.stderr.count("Error: ") == 1, done.stderr
    assert expected in done.stderr


def test_one_process_alone_takes_no_pipeline() -> None:
    done = CliRunner().invoke(app, ["generate", "Hi", "--pipeline"])
    assert done.exit_code == 2
    assert "mlx.launch" in done.stderr


@pytest.mark.slow
def test_an_architecture_that_cannot_be_spread_so_says_how_else(
    tmp_path: Path, nursery: Nursery
) -> None:
    tiny_model_folder(tmp_path / "model", "qwen3")
    dm.save_adapter(strong_pair(tmp_path / "model")[0], tmp_path / "adapter")
    flags = ["--model", tmp_path / "model", "--adapter", tmp_path / "adapter", "--pipeline"]
    done = launch(nursery, "-m", "deltamem_mlx", "generate", "Hi", *flags, timeout=120)
    assert "Try it by tensor parallelism" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--pipeline"]])
def test_recall_is_what_one_process_measures(
    pair: list[str], flags: list[str], tmp_path: Path, nursery: Nursery
) -> None:
    words = ["eval", "recall", *pair, "--limit", "2", "--facts", "1", "--max-tokens", "8"]
    out = ["--json", "--out"]
    one = alone(*words, *out, tmp_path / "one")
    several = launch(nursery, "-m", "deltamem_mlx", *words, *out, tmp_path / "several", *flags)
    assert one.stdout == several.stdout, several.stderr
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("one", "several")]
    assert names[0] == names[1]
    resumed = launch(nursery, "-m", "deltamem_mlx", *words, *out, tmp_path / "several", *flags)
    assert resumed.stdout == one.stdout, resumed.stderr
