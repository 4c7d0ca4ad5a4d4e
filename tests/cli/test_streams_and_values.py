"""What shells, files of options and terminals do to a command: values stay, results are kept."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

import pytest
import typer
import yaml
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import deltamem_mlx as dm
from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import _pasteable, command
from deltamem_mlx.cli.main import CommandGroup
from deltamem_mlx.cli.main import app as real_app
from deltamem_mlx.cli.options.shared import Json

TOLD, ASKED = "anna lives in oslo .", "where does anna live ?"

app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False)
Text = Annotated[str | None, typer.Option("--text", envvar="DELTAMEM_TEST_TEXT")]
Texts = Annotated[list[str] | None, typer.Option("--texts")]
File = Annotated[Path | None, typer.Option("--file")]
Files = Annotated[list[Path] | None, typer.Option("--files")]
Switch = Annotated[bool, typer.Option("--switch/--no-switch")]


@app.callback()
def root() -> None:
    """Commands for these tests."""


@app.command()
@command("show")
def show(
    text: Text = None,
    texts: Texts = None,
    file: File = None,
    files: Files = None,
    switch: Switch = False,
    json: Json = False,
) -> None:
    """Says what it was given."""
    output.result_json(
        {
            "text": text,
            "texts": texts,
            "file": str(file),
            "files": [str(f) for f in files or []],
            "switch": switch,
        }
    )


def given_values(*args: str, env: dict[str, str] | None = None) -> dict:
    done = CliRunner().invoke(app, ["show", *args], env=env)
    assert done.exit_code == 0, done.output
    return yaml.safe_load(done.stdout)


# What a scalar may look like that YAML would take for something else.
ODD = [
    *("0123456", "12:30:45", "1:20", "0777", "1_000", "+12", ".5", "1.10", "1e3", "0x1F", "0b11"),
    *("2024-01-01", "2024-01-01T10:00:00Z", "yes", "No", "on", "OFF", "True", "y", "=", ".inf"),
    *("-0", "1.0", "00", "0o14", "NaN", "~/x"),
]


@pytest.mark.parametrize("text", ODD)
def test_a_file_of_options_gives_what_one_would_type(text: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(f"text: {text}\ntexts: [{text}, {text}]\n")
    values = given_values("-c", str(file))
    assert values["text"] == given_values("--text", text)["text"] == text
    assert values["texts"] == [text, text]


# PyYAML refuses U+FFFE and U+FFFF, and drops spaces around U+2028 and U+2029.
TYPED = st.characters(exclude_categories=("Cs", "Cc", "Cn", "Zl", "Zp"))


@settings(
    deadline=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=st.text(TYPED, min_size=1, max_size=40))
def test_a_value_is_the_same_text_from_a_flag_a_file_and_the_environment(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"text": text}, allow_unicode=True), encoding="utf-8")
    assert given_values(f"--text={text}")["text"] == text
    assert given_values("-c", str(file))["text"] == text
    assert given_values(env={"DELTAMEM_TEST_TEXT": text})["text"] == text


@pytest.mark.parametrize(("text", "value"), [("true", True), ("false", False), ("Yes", True)])
def test_a_switch_is_true_or_false(text: str, value: bool, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(f"switch: {text}\n")
    assert given_values("-c", str(tmp_path / "run.yaml"))["switch"] is value
    (tmp_path / "run.yaml").write_text("switch: 1\n")
    done = CliRunner().invoke(app, ["show", "-c", str(tmp_path / "run.yaml")])
    assert done.exit_code == 2
    assert "expected true or false" in done.stderr


def test_every_path_means_the_home_folder_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "run.yaml").write_text("file: ~/a\nfiles: [~/b, ~/c]\n")
    expected = {"file": f"{tmp_path}/a", "files": [f"{tmp_path}/b", f"{tmp_path}/c"]}
    for args in (
        ["-c", "~/run.yaml"],
        ["--file=~/a", "--files=~/b", "--files", "~/c"],
    ):
        values = given_values(*args)
        assert {name: values[name] for name in expected} == expected


def test_no_command_takes_a_path_that_goes_another_way() -> None:
    """All options whose value is a path are of the type that `@command` expands."""
    from deltamem_mlx.cli.generate import GenerateOptions
    from deltamem_mlx.cli.options.train import TrainOptions

    for grouped, names in (
        (GenerateOptions, ("remember", "memory")),
        (TrainOptions, ("adapter_path",)),
    ):
        kinds = get_type_hints(grouped)
        for name in names:
            found = str(kinds[name])
            assert "Path" in found or Path in get_args(kinds[name])


@pytest.mark.parametrize("seed", ["-1", str(2**64), "-99999999999999999999"])
@pytest.mark.parametrize("name", ["generate", "chat", "bench"])
def test_a_number_that_is_no_seed_is_wrong_use(name: str, seed: str) -> None:
    more = ["--prompt", "x"] if name == "generate" else []
    done = CliRunner().invoke(real_app, [name, f"--seed={seed}", *more])
    assert done.exit_code == 2
    assert "--seed" in done.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--model", ""], "it is empty; expected a folder or user/repo."),
        (["--adapter", " "], "it is empty; expected a folder or user/repo."),
        (["--temp", "inf"], "inf is no number to sample by"),
        (["--temp", "nan"], "'nan'"),
    ],
)
@pytest.mark.parametrize("name", ["generate", "chat", "serve"])
def test_an_empty_name_and_a_temperature_that_is_none_are_wrong_use(
    name: str, args: list[str], said: str
) -> None:
    done = CliRunner().invoke(real_app, [name, *args, *(["x"] if name == "generate" else [])])
    assert done.exit_code == 2
    assert f"Error: Invalid value for '{args[0]}'" in done.stderr and said in done.stderr


# --- streams


def shell(line: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A line of bash; `D` stands for the command."""
    whole = line.replace("D ", f"{sys.executable} -m deltamem_mlx ")
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {whole}"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80"} | env,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=120,
    )


@pytest.mark.parametrize(
    "end",
    [
        *("| true", ">&- 2>&-"),
        *(pytest.param(e, marks=pytest.mark.slow) for e in ("| head -c 1", "2>&-", "> /dev/full")),
    ],
)
def test_a_turn_is_kept_though_nobody_reads_the_answer(tmp_path: Path, end: str) -> None:
    done = shell(f"D generate --memory m.safetensors --prompt '{TOLD}' {end}", tmp_path)
    assert (tmp_path / "m.safetensors").is_file(), done.stderr
    assert "Traceback" not in done.stderr
    session = dm.MemorySession.restore(tmp_path / "m.safetensors", *dm.load())
    assert session.ask(ASKED) == "anna lives in oslo."


def test_a_closed_standard_input_is_an_empty_one(tmp_path: Path) -> None:
    done = shell("D generate - <&-", tmp_path)
    assert done.stderr.startswith("Error: The prompt from standard input is empty.\n")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
@pytest.mark.parametrize(
    "line",
    [
        "D generate --help",
        *(
            pytest.param(line, marks=pytest.mark.slow)
            for line in ("D eval recall --limit 2 --facts 1", "D demo")
        ),
    ],
)
def test_results_do_not_die_of_a_terminals_encoding(
    tmp_path: Path, line: str, encoding: str
) -> None:
    done = shell(line, tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr[-500:]


# --- help


@pytest.mark.parametrize("name", ["generate", "chat", "train", "inspect", "bench", "upload"])
def test_examples_of_the_help_can_be_pasted(name: str) -> None:
    text = CliRunner().invoke(real_app, [name, "--help"], env={"COLUMNS": "80"}).stdout
    lines = text.splitlines()
    first = next(i for i, line in enumerate(lines) if "Examples:" in line)
    shown = [line.strip(" │") for line in lines[first + 1 :] if line.strip(" │")]
    commands = " ".join(shown).split("$ ")[1:]
    assert commands
    for number, line in enumerate(shown):
        goes_on = number + 1 < len(shown) and not shown[number + 1].startswith(("$", "╭"))
        if line.startswith("╭"):
            break
        assert line.endswith("\\") == goes_on, line


def test_a_long_example_ends_its_lines_in_backslashes() -> None:
    example = "deltamem-mlx generate --model MODEL --adapter ADAPTER --prompt 'a  b' " * 2
    text = _pasteable(example.strip())
    assert max(map(len, text.split("\n"))) <= 79
    joined = text.replace("\\\n", "").removeprefix("  $ ")
    assert " ".join(joined.split()) == " ".join(example.split())
    assert "'a  b'" in text
