"""Defaults of the user's: from a file and the environment, below what a command line says."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.files.places import defaults_file, memories_folder
from deltamem_mlx.memory.file import read_memory


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = dm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


def write(text: str) -> None:
    defaults_file().parent.mkdir(parents=True, exist_ok=True)
    defaults_file().write_text(text)


def call(*args: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [*map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done


def memories() -> list[str]:
    return sorted(path.stem for path in memories_folder().glob("*"))


def test_a_prompt_is_an_argument_or_an_option_and_not_both() -> None:
    plain = call("generate", "where does anna live ?").stdout
    assert plain == call("generate", "--prompt", "where does anna live ?").stdout
    assert "two prompts" in call("generate", "hi .", "--prompt", "hi .", code=2).stderr
    assert 'Give a prompt: generate "PROMPT"' in call("generate", code=2).stderr
    assert "is empty" in call("generate", " ", code=2).stderr
    done = CliRunner().invoke(app, ["generate", "-"], input="where does anna live ?")
    assert done.stdout == plain


def test_the_file_stands_in_for_flags(qwen3_tiny: Path, adapter: Path) -> None:
    write(f"model: {qwen3_tiny}\nadapter: {adapter}\nmemory: mine\nmax_tokens: 3\n")
    found = json.loads(call("generate", "Who?", "--json").stdout)
    assert (found["generation_tokens"], memories()) == (3, ["mine"])
    assert read_memory(memories_folder() / "mine.safetensors").base_model["num_layers"] == 3
    assert (
        json.loads(call("generate", "Who?", "--json", "-m", "2").stdout)["generation_tokens"] == 2
    )


def test_the_environment_is_stronger_and_a_flag_the_strongest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write("memory: of-file\n")
    monkeypatch.setenv("DELTAMEM_MEMORY", "of-environment")
    call("generate", "hi .")
    assert memories() == ["of-environment"]
    call("generate", "hi .", "--memory", "of-flag")
    assert memories() == ["of-environment", "of-flag"]
    monkeypatch.setenv("DELTAMEM_MEMORY", "")
    call("generate", "hi .")
    assert memories() == ["of-environment", "of-flag"]


def test_who_names_a_model_takes_no_memory_and_adapter_of_another(
    qwen3_tiny: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(f"model: {qwen3_tiny}\nadapter: {adapter}\nmemory: mine\n")
    assert call("generate", "where does anna live ?", "--model", "builtin").stdout
    options = tmp_path / "options.yaml"
    options.write_text("model: builtin\n")
    call("generate", "where does anna live ?", "-c", options)
    assert memories() == []
    monkeypatch.setenv("DELTAMEM_MODEL", "builtin")
    shown = json.loads(call("config", "--json").stdout)["defaults"]
    assert shown == {"model": {"value": "builtin", "from": "DELTAMEM_MODEL"}}


def test_config_refuses_what_other_commands_take_and_says_where_defaults_are(
    tmp_path: Path,
) -> None:
    options = tmp_path / "c.yaml"
    options.write_text("memory: anna\n")
    done = CliRunner().invoke(app, ["config", "-c", str(options)])
    assert done.exit_code == 2
    assert f"It shows the defaults of {defaults_file()}" in done.stderr


def test_config_says_what_is_set_and_where_to_set_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = call("config").stdout
    assert f"{defaults_file()} (not there yet)" in shown
    assert str(memories_folder()) in shown
    assert shown.count("not set") == 3
    write("memory: mine\ntemp: 0.5\n")
    monkeypatch.setenv("DELTAMEM_ADAPTER", "user/adapter")
    lines = dict(line.split(maxsplit=1) for line in call("config").stdout.splitlines())
    assert lines["adapter"] == "user/adapter   (from DELTAMEM_ADAPTER)"
    assert lines["memory"] == "not set"
    assert lines["temp"] == f"0.5   (from {defaults_file()})"


@pytest.mark.parametrize(
    "text, said",
    [
        ("memroy: x\n", "have no 'memroy'; expected memory."),
        ("lora: x\n", "expected model, adapter, memory, system-prompt"),
        ("memory: [a, b]\n", "memory takes one value"),
        ("- a\n", "holds no options"),
        ("memory: a\nmemory: b\n", "sets one option twice"),
        ("temp: hot\n", "temp: "),
        ("temp: -1\n", "temp: "),
        ("memory: a/b\n", "neither a memory's name"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(text: str, said: str) -> None:
    write(text)
    error = call("generate", "hi .", code=2).stderr
    assert str(defaults_file()) in error
    assert said in error


def test_commands_that_measure_and_train_take_no_defaults() -> None:
    write("memroy: x\n")
    call("generate", "--help")
    call("memories")


def test_config_sets_and_unsets_and_leaves_the_other_lines() -> None:
    write("# mine\nmemory: a  # the old one\nmax-tokens: 9\n")
    assert call("config", "set", "memory", "work").stdout.startswith("memory is work now")
    call("config", "set", "system-prompt", "Be brief: 'yes' # or no")
    call("config", "unset", "max_tokens")
    first, memory, _prompt = defaults_file().read_text().splitlines()
    assert (first, memory) == ("# mine", "memory: work")
    shown = call("config").stdout
    assert "Be brief: 'yes' # or no" in shown and "max-tokens" not in shown
    assert "was no default" in call("config", "unset", "temp").stdout
    before = defaults_file().read_text()
    for wrong in (("temp", "hot"), ("memory", "a/b"), ("top-p", "2"), ("memroy", "a"), ("temp",)):
        assert call("config", "set", *wrong, code=2).stderr.startswith("Error: ")
    assert "goes in quotes" in call("config", "set", "system-prompt", "Be", "brief", code=2).stderr
    assert defaults_file().read_text() == before


def test_paths_are_kept_whole_and_names_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is set in one folder means the same in another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for key, given, kept in (
        ("memory", "work", "work"),
        ("memory", "notes/me.safetensors", str(tmp_path / "notes" / "me.safetensors")),
        ("model", "model", str(tmp_path / "model")),
        ("model", "./other", str(tmp_path / "other")),
        ("model", "builtin", "builtin"),
        ("adapter", "user/repo", "user/repo"),
        ("system-prompt", "./Be brief.", "./Be brief."),
    ):
        done = call("config", "set", key, given, "--json")
        assert json.loads(done.stdout) == {"key": key, "value": kept, "changed": True}
        assert json.loads(call("config", "--json").stdout)["defaults"][key]["value"] == kept
    done = json.loads(call("config", "unset", "top-k", "--json").stdout)
    assert done == {"key": "top-k", "value": None, "changed": False}


def test_config_says_what_is_not_valid() -> None:
    write("temp: hot\n")
    assert "not valid: 'hot': " in call("config").stdout
    assert json.loads(call("config", "--json").stdout)["defaults"]["temp"]["problem"]
    assert "'hot'" in call("generate", "hi .", code=2).stderr


def test_the_builtin_adapter_is_that_of_the_builtin_model() -> None:
    write("model: builtin\nadapter: builtin\n")
    call("generate", "anna lives in oslo .")


def test_the_default_memory_is_marked() -> None:
    call("generate", "anna lives in oslo .", "--memory", "work")
    call("generate", "anna lives in oslo .", "--memory", "home")
    write("memory: work\n")
    marked = [line.split()[0] for line in call("memories").stdout.splitlines() if "default" in line]
    assert marked == ["work"]
