"""Memories that are not there, and words that are no names: said before anything is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from forked import Nursery
from terminal import Terminal
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.memory.shelf import MemoryShelf, nearly_named


def call(*args: str | Path, code: int = 2) -> Result:
    done = CliRunner().invoke(app, [*map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done


@pytest.fixture
def work() -> Path:
    """A memory called work."""
    path = MemoryShelf().folder / "work.safetensors"
    session = dm.MemorySession(*dm.load())
    session.remember("anna lives in oslo .")
    session.save(path)
    return path


@pytest.mark.parametrize("command", [("generate", "hi"), ("remember", "-"), ("chat",)])
def test_a_slip_in_a_memorys_name_begins_no_other(command: tuple[str, ...], work: Path) -> None:
    said = call(*command, "--memory", "wrok", "-q").stderr
    assert "No memory wrok. Did you mean work? To begin a new one: --new-memory" in said
    assert [path.stem for path in work.parent.iterdir()] == ["work"]


def test_a_name_in_other_letters_begins_no_other_and_is_the_same_where_the_disk_says_so(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert nearly_named("WORK", ["word", "work"]) == "work"
    assert nearly_named("WORK2", ["work", "work2"]) == "work2"
    assert nearly_named("Work2", ["work"]) == ""
    if not (other := work.with_stem("Work")).exists():
        said = call("generate", "hi", "--memory", "Work", "-q").stderr
        assert "No memory Work. Did you mean work? To begin a new one: --new-memory" in said
        os.link(work, other)  # now it opens what a disk that takes them for one opens
    monkeypatch.setattr(MemoryShelf, "names", lambda _: ["gone", "work"])
    work.with_stem("gone").symlink_to("nowhere")
    found = MemoryShelf().get("Work")
    assert (found.name, found.path) == ("work", work)


def test_read_only_wants_a_memory_that_is_there(work: Path, tmp_path: Path) -> None:
    for command in (("generate", "hi"), ("chat",)):
        said = call(*command, "--memory", "wrok", "-q", "--read-only").stderr
        assert "No memory wrok: with --read-only, none is begun. Did you mean work?" in said
        assert "No memory home: " in call(*command, "--memory", "home", "--read-only").stderr
        gone = tmp_path / "gone.safetensors"
        assert f"No memory file {gone}: " in call(*command, "--memory", gone, "--read-only").stderr


def test_names_that_are_meant_are_begun(work: Path) -> None:
    question = ("generate", "where does anna live ?", "--memory")
    call(*question, "work2", code=0)
    call(*question, "words", "--new-memory", code=0)
    assert sorted(path.stem for path in work.parent.iterdir()) == ["words", "work", "work2"]


def test_in_a_terminal_it_asks_before_another_is_begun(
    work: Path, nursery: Nursery, tmp_path: Path
) -> None:
    terminal = Terminal(["generate", "hi", "--memory", "wrok"], tmp_path, nursery)
    terminal.until("No memory wrok. Did you mean work? Begin a new one? [y/N]")
    terminal.type("\x03")
    assert terminal.end() == 130
    terminal.close()
    assert [path.stem for path in work.parent.iterdir()] == ["work"]


def test_a_path_is_no_name(work: Path) -> None:
    before = work.read_bytes()
    said = call("generate", "hi", "--memory", "./work").stderr
    assert "'./work' is neither a memory's name (letters and digits, with -, _ and spaces" in said
    assert work.read_bytes() == before


@pytest.mark.parametrize(
    "args, code, said",
    [
        (["memories", "delete", "work"], 2, "Did you mean remove?"),
        (["memories", "rename", "work", "../x"], 1, "with -, _ and spaces in between"),
        (["memories", "undo", "work", "3"], 2, "Expected 1: "),
        (["memories", "show", "work", "x y"], 2, "Expected 1: "),
        (["generate", "where", "is", "anna"], 2, "A text of several words goes in quotes."),
        (["remember", "anna lives in oslo .", "--memory", "work"], 1, "remember -"),
        (["memories", "import", "notes.txt", "bad"], 1, "notes.txt is no memory file, or is cut"),
    ],
)
def test_what_was_meant_is_said(
    args: list[str],
    code: int,
    said: str,
    work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("anna lives in oslo .")
    assert said in call(*args, code=code).stderr


def test_a_file_that_is_there_and_one_that_cannot_be_told(work: Path, tmp_path: Path) -> None:
    there = tmp_path / "there.safetensors"
    call("memories", "export", "work", there, code=0)
    assert "To replace it: --overwrite" in call("memories", "export", "work", there, code=1).stderr
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "bad.json").write_text("[{]")
    said = call("remember", folder, "--memory", "work", code=1).stderr
    assert "bad.json" in said and not said.splitlines()[-1].endswith(":")


def test_a_file_that_is_not_there_is_said_before_mlx_lm_is_imported(tmp_path: Path) -> None:
    lines = [["remember", "gone.txt", "--memory", "me"], ["inspect", "--trace", "gone.txt"]]
    lines += [["generate", "hi", "--remember", "gone.txt"]]
    code = f"""
import sys
from typer.testing import CliRunner
from deltamem_mlx.cli.main import app
for line in {lines!r}:
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 1 and "gone.txt" in done.stderr, done.stderr
    assert not {{"mlx_lm", "transformers"}} & set(sys.modules), line
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ, check=False)
    assert done.returncode == 0


def test_an_option_is_suggested_where_it_is_close_only() -> None:
    assert "No such option: --folder\n" in call("generate", "--folder", "x").stderr
    assert "--model" in call("generate", "--modle", "x").stderr
    assert "; found 'hot'." in call("generate", "hi", "--temp", "hot").stderr


def test_a_memory_that_could_not_be_saved_is_refused_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    below = tmp_path / "file" / "me.safetensors"
    said = call("remember", "-", "--memory", below, "-q").stderr
    assert f"'{tmp_path / 'file'}' is a file; expected a folder." in said
    access = os.access
    monkeypatch.setattr(os, "access", lambda at, mode: Path(at) != tmp_path and access(at, mode))
    said = call("generate", "hi .", "--memory", tmp_path / "new" / "me.safetensors", "-q").stderr
    assert f"nothing can be written in '{tmp_path}'" in said
    assert not (tmp_path / "new").exists()
    (work := tmp_path / "work").mkdir()
    (work / "link.safetensors").symlink_to(tmp_path / "there.safetensors")  # what is written
    said = call("generate", "hi .", "--memory", work / "link.safetensors", "-q").stderr
    assert f"nothing can be written in '{tmp_path}'" in said
    session = dm.MemorySession(*dm.load())
    session.save(tmp_path / "me.safetensors")
    call("generate", "hi .", "--memory", tmp_path / "me.safetensors", "--read-only", code=0)
