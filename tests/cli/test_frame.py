"""The frame every command stands in: help, exit codes, sentences for errors, YAML files, streams.

Commands made here stand for the real ones; what is said of every command is checked on those, too.
"""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated

import mlx.core as mx
import pytest
import typer
from conftest import ROOT, RunCli
from typer.main import get_command
from typer.testing import CliRunner, Result

from deltamem_mlx._version import __version__
from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.lazy import LazyCommand, Listed, register
from deltamem_mlx.cli.main import COMMANDS, CommandGroup
from deltamem_mlx.cli.main import app as real_app
from deltamem_mlx.cli.options import shared as o

Remember = Annotated[list[str] | None, typer.Option("--remember")]
Fail = Annotated[str, typer.Argument()]


@command("deltamem-mlx show --model user/model --remember a.txt --remember b.txt")
def show(
    model: o.Model = None,
    adapter: o.Adapter = None,
    prompt: o.Prompt = None,
    max_tokens: o.MaxTokens = 256,
    temp: o.Temp = 0.0,
    top_p: o.TopP = 1.0,
    top_k: o.TopK = 0,
    min_p: o.MinP = 0.0,
    seed: o.Seed = None,
    kv_bits: o.KvBits = None,
    kv_group_size: o.KvGroupSize = 64,
    max_kv_size: o.MaxKvSize = None,
    prefill_step_size: o.PrefillStepSize = 2048,
    trust_remote_code: o.TrustRemoteCode = False,
    remember: Remember = None,
) -> None:
    """Shows what it was given, as JSON.

    The second paragraph is about [brackets], and it goes on over
    several lines.
    """
    given = dict(locals())
    output.note("a note")
    warnings.warn("a warning", stacklevel=1)
    output.result_json(given)


@command("deltamem-mlx fail file")
def fail(how: Fail) -> None:
    """Fails in the way that is asked for."""
    if how == "wait":
        output.result("waiting")
        time.sleep(600)
    if how == "print":
        for _ in range(100_000):
            output.result("a line")
    raise FAILURES[how]


FAILURES: dict[str, BaseException] = {
    "value": ValueError("The rank is 0. Expected 1 or more."),
    "lines": ValueError("Adapter 'a' does not fit:\n  one\n  two"),
    "markup": ValueError("[red]x[/nothing] :smile:"),
    "type": TypeError("unsupported operand"),
    "key": KeyError("rank"),
    "empty": RuntimeError(),
    "permission": PermissionError(13, "Permission denied", "/root/x"),
    "memory": RuntimeError("[metal::malloc] Attempting to allocate 9 bytes"),
    "extra": ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"),
    "module": ModuleNotFoundError("No module named 'jinja2'", name="jinja2"),
    "eof": EOFError(),
    "usage": UsageError("Give --model or --adapter."),
    "bad": typer.BadParameter("too long.", param_hint="--model"),
}

app = typer.Typer(cls=CommandGroup, pretty_exceptions_enable=False, rich_markup_mode="rich")
register(app, {name: Listed(f"test_frame:{name}", "") for name in ("show", "fail")})


@pytest.fixture(autouse=True)
def _plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "0")
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def call(*args: str | Path) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        return CliRunner().invoke(app, [str(arg) for arg in args])


def shown(*args: str | Path) -> dict:
    done = call("show", *args)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def process(*args: str, **options: object) -> subprocess.Popen[str]:
    """The commands of this file in a process of their own."""
    code = "from test_frame import app; app(prog_name='deltamem-mlx')"
    folders = [ROOT, Path(__file__).parent, ROOT / "tests", ROOT / "tests" / "helpers"]
    path = os.pathsep.join(map(str, folders))
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        env=os.environ | {"PYTHONPATH": path, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


# --- processes and their exit codes


def test_version_and_help_succeed_on_stdout(run_cli: RunCli) -> None:
    version = run_cli("--version")
    assert (version.returncode, version.stdout) == (0, f"deltamem-mlx {__version__}\n")
    for args in ([], ["--help"], ["-h"]):
        done = run_cli(*args)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Usage: deltamem-mlx [OPTIONS] COMMAND" in done.stdout


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nothing"], "Error: No such command 'nothing'.\nTry: deltamem-mlx --help\n"),
        (["--nothing"], "Error: No such option: --nothing\nTry: deltamem-mlx --help\n"),
    ],
)
def test_wrong_use_exits_2_in_one_sentence(run_cli: RunCli, args: list[str], said: str) -> None:
    done = run_cli(*args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_failure_exits_1_and_debug_adds_the_traceback() -> None:
    plain = process("fail", "value")
    out, err = plain.communicate(timeout=300)
    assert (plain.returncode, out) == (1, "")
    assert err == "Error: The rank is 0. Expected 1 or more.\n"

    debug = process("fail", "value", "--debug")
    _, err = debug.communicate(timeout=300)
    assert debug.returncode == 1
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("Error: The rank is 0. Expected 1 or more.\n")


def test_interrupt_exits_130_without_a_traceback() -> None:
    running = process("fail", "wait")
    assert running.stdout is not None
    assert running.stdout.readline() == "waiting\n"
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=300)
    assert (running.returncode, err) == (130, "Interrupted.\n")


def test_closed_pipe_ends_the_command_quietly() -> None:
    running = process("fail", "print")
    assert running.stdout is not None
    assert running.stdout.readline() == "a line\n"
    running.stdout.close()
    _, err = running.communicate(timeout=300)
    assert running.returncode == 1
    assert err == ""


# --- what every real command has


def _listed() -> dict[str, LazyCommand]:
    """The commands of the lists, as those show them."""
    found = dict(get_command(real_app).commands)
    found |= {f"eval {name}": one for name, one in found["eval"].load().commands.items()}
    return found


def _leaves(name: str) -> list[list[str]]:
    """The command of that name, or the commands under it."""
    found = get_command(real_app).commands[name].load()
    return [[name, under] for under in found.commands] if hasattr(found, "commands") else [[name]]


LEAVES = [path for name in COMMANDS for path in _leaves(name)]
IDS = [" ".join(path) for path in LEAVES]


@pytest.mark.parametrize("path", LEAVES, ids=IDS)
def test_every_command_has_examples_and_the_common_flags(path: list[str]) -> None:
    done = CliRunner().invoke(real_app, [*path, "--help"])
    assert done.exit_code == 0
    assert f"$ deltamem-mlx {' '.join(path)}" in done.stdout
    assert "\n $" not in done.stdout  # examples are indented, whatever stands before them
    for flag in ("--config", "--quiet", "--debug", "--help"):
        assert flag in done.stdout


def test_a_list_of_commands_says_what_each_says_of_itself() -> None:
    assert list(get_command(real_app).commands) == list(COMMANDS)
    for name, listed in _listed().items():
        assert listed.help == listed.load().help.partition("\n\n")[0], name


def test_help_waits_for_no_heavy_import() -> None:
    code = (
        "import json, sys\n"
        "from deltamem_mlx.cli.main import app\n"
        "heavy = {'mlx', 'mlx_lm', 'transformers', 'numpy', 'torch', 'huggingface_hub'}\n"
        "for path in json.loads(sys.argv[1]):\n"
        "    app([*path, '--help'], standalone_mode=False)\n"
        "    print('imported:', path, sorted(heavy & set(sys.modules)))"
    )
    paths = [[], *LEAVES]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(paths)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith("imported:")]
    assert said == [f"imported: {path} []" for path in paths], done.stderr


# --- help, streams, options


def test_help_shows_paragraphs_examples_and_brackets() -> None:
    done = call("show", "--help")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "Shows what it was given, as JSON." in lines
    assert "The second paragraph is about [brackets], and it goes on over several lines." in lines
    assert (
        (lines[lines.index("Examples:") + 2])
        == "$ deltamem-mlx show --model user/model --remember a.txt --remember b.txt"
    )
    for panel in (o.MODEL, o.SAMPLING, o.CONTEXT, o.GENERAL):
        assert f"─ {panel} ─" in done.stdout


def test_results_go_to_stdout_and_the_rest_to_stderr() -> None:
    done = call("show", "--prompt", "π [b]")
    assert json.loads(done.stdout)["prompt"] == "π [b]"
    assert done.stderr == "a note\nWarning: a warning\n"
    quiet = call("show", "--quiet")
    assert (quiet.stderr, quiet.stdout.count("\n")) == ("", 1)
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"
    assert call("show").stderr != "", "quiet is for one run only"
    assert "test_frame.py:" in call("show", "--debug").stderr
    assert call("fail", "value", "--quiet").stderr.startswith("Error: The rank is 0.")


def test_adapter_path_is_the_same_as_adapter() -> None:
    assert shown("--adapter-path", "a")["adapter"] == shown("--adapter", "a")["adapter"] == "a"


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-tokens", "0"),
        ("-m", "many"),
        ("--temp", "-0.1"),
        ("--top-p", "1.1"),
        ("--top-k", "-1"),
        ("--min-p", "2"),
        ("--kv-bits", "7"),
        ("--kv-group-size", "33"),
        ("--max-kv-size", "0"),
        ("--prefill-step-size", "0"),
        ("--seed", "x"),
    ],
)
def test_values_out_of_range_are_wrong_use(flag: str, value: str) -> None:
    done = call("show", flag, value)
    assert done.exit_code == 2
    first, second = done.stderr.splitlines()
    assert first.startswith("Error: Invalid value for ")
    assert f"'{flag}'" in first
    assert second.endswith("show --help")


def test_unknown_flag_names_the_close_one() -> None:
    done = call("show", "--max-token", "3")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: No such option: --max-token")
    assert "--max-tokens" in done.stderr


# --- sentences


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("value", 1, "The rank is 0. Expected 1 or more."),
        ("lines", 1, "Adapter 'a' does not fit:\n  one\n  two"),
        ("markup", 1, "[red]x[/nothing] :smile:"),
        ("type", 1, "TypeError: unsupported operand. Run again with --debug for the traceback."),
        ("key", 1, "KeyError: 'rank'. Run again with --debug for the traceback."),
        ("empty", 1, "RuntimeError. Run again with --debug for the traceback."),
        (
            "permission",
            1,
            "Permission denied: '/root/x'. Check the path and its permissions.",
        ),
        (
            "memory",
            1,
            "Out of memory. Try a model with fewer bits, a smaller --max-kv-size or "
            "--prefill-step-size, or --kv-bits 8. "
            "([metal::malloc] Attempting to allocate 9 bytes)",
        ),
        (
            "extra",
            1,
            "No module named 'torch.nn'. Install it with: pip install 'deltamem-mlx[torch]'",
        ),
        (
            "module",
            1,
            "No module named 'jinja2'. Install it with: pip install --upgrade deltamem-mlx",
        ),
        ("eof", 1, "Input ended before the command was done."),
        ("usage", 2, "Give --model or --adapter.\nTry: root fail --help"),
        ("bad", 2, "Invalid value for --model: too long.\nTry: root fail --help"),
    ],
)
def test_errors_become_sentences(how: str, code: int, said: str) -> None:
    done = call("fail", how)
    assert done.exit_code == code
    assert done.stderr.strip() == f"Error: {said}"
    assert done.stdout == ""


def _missing(folder: Path) -> object:
    return (folder / "config.json").read_text()


def _bad_json(folder: Path) -> object:
    path = folder / "config.json"
    path.write_text('{"rank": ')
    return json.loads(path.read_text())


def _not_text(folder: Path) -> object:
    path = folder / "notes.txt"
    path.write_bytes(b"\xff\xfe\x00")
    return path.read_text(encoding="utf-8")


def _cut_safetensors(folder: Path) -> object:
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), {"a": mx.zeros((100,))})
    path.write_bytes(path.read_bytes()[:200])
    return mx.load(str(path))


def _empty_safetensors(folder: Path) -> object:
    path = folder / "model.safetensors"
    path.write_bytes(b"")
    return mx.load(str(path))


def _not_npz(folder: Path) -> object:
    path = folder / "delta_mem_adapter_mlx.npz"
    path.write_bytes(b"no zip")
    return mx.load(str(path))


@pytest.mark.parametrize(
    ("read", "name", "said"),
    [
        (_missing, "config.json", "No file '{path}'. Check the path."),
        (_bad_json, "config.json", "'{path}' is not valid JSON: "),
        (_not_text, "notes.txt", "'{path}' is not UTF-8 text: invalid start byte at byte 0."),
        (_cut_safetensors, "model.safetensors", "'{path}' cannot be read as weights: it is cut "),
        (_empty_safetensors, "model.safetensors", "'{path}' cannot be read as weights: it is cut "),
        (_not_npz, "delta_mem_adapter_mlx.npz", "'{path}' cannot be read as weights: it is cut "),
    ],
)
def test_broken_files_are_named(
    read: object, name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Exception) as caught:
        read(tmp_path)
    monkeypatch.setitem(FAILURES, "file", caught.value)
    done = call("fail", "file")
    assert done.exit_code == 1
    assert done.stderr.startswith("Error: " + said.format(path=tmp_path / name))
    assert "Traceback" not in done.stderr


# --- options from a YAML file


def test_file_sets_options_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "model: user/model\n"
        "adapter_path: user/adapter\n"
        "max-tokens: 12\n"
        "temp: 0.5\n"
        "min-p: 1e-2\n"
        "prompt: 42\n"
        "trust-remote-code: true\n"
        "remember: [a.txt, b.txt]\n"
        "seed: null\n"
        "quiet: true\n"
    )
    given = shown("--config", path, "--temp", "0.7")
    wanted = {
        "model": "user/model",
        "adapter": "user/adapter",
        "max_tokens": 12,
        "temp": 0.7,
        "min_p": 0.01,
        "prompt": "42",
        "trust_remote_code": True,
        "remember": ["a.txt", "b.txt"],
        "seed": None,
    }
    assert {key: given[key] for key in wanted} == wanted
    assert given["top_p"] == 1.0, "what neither sets keeps its default"
    assert call("show", "-c", path).stderr == "", "quiet comes from the file"
    assert shown("--remember", "c.txt", "--config", path)["remember"] == ["c.txt"]


def test_single_value_and_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("remember: a.txt")
    assert shown("-c", path)["remember"] == ["a.txt"]
    path.write_text("# nothing\n")
    assert shown("-c", path) == shown()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "max-token: 3\nlora: 1\n",
            "has keys that are no flags of 'root show': "
            "'max-token' (close: max-tokens, max-kv-size), 'lora'.",
        ),
        ("config: other.yaml", "'config'"),
        ("adapter: a\nadapter-path: b", "sets one option twice: --adapter, --adapter-path."),
        ("trust-remote-code: 1", "'trust-remote-code' is a switch; expected true or false."),
        ("model: [a, b]", "'model' takes one value, not a list."),
        ("model: {a: 1}", "'model' is {'a': '1'}; expected text or a number."),
        ("remember: [a, null]", "'remember' is ['a', None]; expected text or a number."),
        ("- model", "holds no options; expected lines 'flag: value'."),
        ("model: [", "is not valid YAML: "),
        ("max-tokens: 1.5", "Invalid value for '--max-tokens'"),
        ("temp: -1", "Invalid value for '--temp'"),
        ("kv-bits: 7", "7 is not one of 2, 3, 4, 5, 6, 8."),
    ],
)
def test_bad_files_are_wrong_use(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    done = call("show", "--config", path)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_file_is_wrong_use(tmp_path: Path) -> None:
    done = call("show", "-c", tmp_path / "none.yaml")
    assert done.exit_code == 2
    assert f"cannot read '{tmp_path / 'none.yaml'}': No such file or directory." in done.stderr
