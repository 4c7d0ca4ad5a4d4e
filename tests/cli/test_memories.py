"""`deltamem-mlx memories`, and memories that are called by their names."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import ROOT, RunCli
from forked import Nursery
from terminal import Terminal
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.main import app
from deltamem_mlx.cli.memories.ask import _report
from deltamem_mlx.files.places import memories_folder, memory_path
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.memory.shelf import MemoryShelf


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory that was told where anna lives."""
    path = tmp_path_factory.mktemp("saved") / "anna.safetensors"
    session = dm.MemorySession(*dm.load())
    session.remember("anna lives in oslo .")
    session.save(path)
    return path


@pytest.fixture
def shelf(saved: Path) -> MemoryShelf:
    shelf = MemoryShelf()
    shelf.take_in(saved)
    return shelf


def call(*args: str | Path, code: int = 0) -> Result:
    done = CliRunner().invoke(app, ["memories", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    assert done.exit_code == code, (done.stdout, done.stderr)
    return done


def test_what_was_told_by_name_is_found_by_name_from_any_folder(
    run_cli: RunCli, tmp_path: Path
) -> None:
    done = run_cli("remember", ROOT / "examples" / "facts.txt", "--memory", "anna")
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    question = ("--prompt", "what is the job of ben ?")
    asked = run_cli("generate", "--memory", "anna", *question, cwd=elsewhere)
    assert asked.stdout == "ben is a doctor.\n"
    first, line = call().stdout.splitlines()
    assert first.split()[:2] == ["name", "tokens"]
    assert line.startswith("anna ") and " builtin " in line
    assert memories_folder().stat().st_mode & 0o777 == 0o700
    other = run_cli("generate", "--memory", "anan", *question, "--new-memory")
    assert "No memory anan yet: the memory is empty. Did you mean anna?" in other.stderr
    assert not list(tmp_path.rglob("*.safetensors"))


def test_without_a_command_it_takes_the_options_of_list(saved: Path) -> None:
    folder = saved.parent
    (listed,) = json.loads(call("--folder", folder, "--json").stdout)
    assert listed["name"] == "anna"
    quiet = call("-q", "--folder", folder)
    assert (quiet.stdout, quiet.stderr) == (call("list", "--folder", folder).stdout, "")
    after = call("--folder", folder, "show", "anna", code=2).stderr
    assert "--folder comes after the command: memories show … --folder" in after


def test_memories_folder_is_for_its_owner_only(shelf: MemoryShelf) -> None:
    assert shelf.folder == memories_folder()
    assert shelf.folder.stat().st_mode & 0o777 == 0o700
    assert shelf.path("anna").stat().st_mode & 0o777 == 0o600


def test_list_shows_the_last_used_first_and_what_cannot_be_read(
    shelf: MemoryShelf, saved: Path
) -> None:
    shelf.copy("anna", "ben")
    (shelf.folder / "bad.safetensors").write_bytes(b"no memory")
    narrow = json.dumps({"state.0": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}})
    (shelf.folder / "eight-bits.safetensors").write_bytes(
        len(narrow).to_bytes(8, "little") + narrow.encode() + bytes(2)
    )
    for age, name in enumerate(("ben", "bad", "eight-bits", "anna")):
        os.utime(shelf.folder / f"{name}.safetensors", (2e9 - age, 2e9 - age))
    _, *lines = call("list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ben", "bad", "eight-bits", "anna"]
    assert all("is no memory file" in line for line in lines[1:3])
    found = {memory["name"]: memory for memory in json.loads(call("list", "--json").stdout)}
    assert found["anna"]["tokens_written"][0] > 0
    assert "problem" in found["bad"]
    assert found["ben"]["adapter"] == found["anna"]["adapter"]


def test_they_are_shown_copied_renamed_and_taken_out_and_in(
    shelf: MemoryShelf, saved: Path, tmp_path: Path
) -> None:
    shown = call("show", "anna").stdout
    assert "builtin" in shown
    assert str(shelf.path("anna")) in shown
    call("copy", "anna", "anna 2")
    call("rename", "anna 2", "ben")
    assert shelf.names() == ["anna", "ben"]
    out = tmp_path / "out"
    out.mkdir()
    call("export", "ben", out)
    call("export", "ben", out / "x.safetensors")
    assert (out / "ben.safetensors").read_bytes() == saved.read_bytes()
    call("import", out / "x.safetensors")
    call("import", out / "x.safetensors", "y")
    assert shelf.names() == ["anna", "ben", "x", "y"]
    call("remove", "x", "y", "--yes")
    assert shelf.names() == ["anna", "ben"]


def test_files_are_listed_and_moved_without_mlx(shelf: MemoryShelf) -> None:
    code = (
        "import sys\n"
        "from deltamem_mlx.cli.main import app\n"
        "for line in ('list', 'show anna', 'copy anna ben', 'rename ben b', 'remove b --yes'):\n"
        "    app(['memories', *line.split()], standalone_mode=False)\n"
        "print(sorted({'mlx', 'mlx_lm', 'transformers', 'huggingface_hub'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-2:] == ["b is gone.", "[]"], done.stderr


@pytest.mark.parametrize(
    "args, said",
    [
        (["show", "ana"], "Did you mean anna?"),
        (["show", "work"], "There is: anna."),
        (["show", "gone.safetensors"], "No memory file 'gone.safetensors'"),
        (["copy", "anna", "../up"], "'../up' is no name for a memory"),
        (["copy", "anna", ""], "'' is no name"),
        (["copy", "anna", ".hidden"], "is no name"),
        (["rename", "anna", "anna"], "There is a memory 'anna' already"),
        (["remove", "anna", "ben", "--yes"], "No memory 'ben'"),
        (["export", "anna", "x.txt"], "does not end in .safetensors"),
        (["import", "gone.safetensors"], "No memory file"),
        (["import", __file__, "x"], "is no memory file"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_changed(
    args: list[str], said: str, shelf: MemoryShelf
) -> None:
    before = shelf.path("anna").read_bytes()
    assert said in call(*args, code=1).stderr
    assert shelf.names() == ["anna"]
    assert shelf.path("anna").read_bytes() == before


def test_a_file_that_is_there_is_replaced_when_asked_only(
    shelf: MemoryShelf, tmp_path: Path
) -> None:
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    assert "was left as it is" in call("export", "anna", there, code=1).stderr
    assert there.read_text() == "mine"
    call("export", "anna", there, "--overwrite")
    assert there.read_bytes() == shelf.path("anna").read_bytes()


def test_remove_asks_in_a_terminal_and_elsewhere_wants_yes(
    shelf: MemoryShelf, nursery: Nursery, tmp_path: Path
) -> None:
    assert "give --yes" in call("remove", "anna", code=2).stderr
    for answer, left in (("n", ["anna"]), ("y", [])):
        terminal = Terminal(["memories", "remove", "anna"], tmp_path, nursery)
        terminal.until("tokens")  # what goes is shown
        terminal.until("Delete anna for good?")
        terminal.type(f"{answer}\r")
        assert terminal.end() == (answer == "n")
        terminal.close()
        assert shelf.names() == left


def test_a_memory_that_is_named_twice_is_removed_once(shelf: MemoryShelf) -> None:
    gone = call("remove", "anna", shelf.path("anna"), "--yes")
    assert len(gone.stdout.splitlines()) == 1 and shelf.names() == []


def test_a_servers_memories_are_found_by_their_keys(saved: Path, tmp_path: Path) -> None:
    key, folder = "user/7 of acme", tmp_path / "memories"
    folder.mkdir()
    name = hashlib.sha256(key.encode()).hexdigest()
    (folder / f"{name}.safetensors").write_bytes(saved.read_bytes())
    (folder / ".lock").write_text("1")
    assert call("list", "--folder", folder).stdout.splitlines()[1].startswith(f"{name[:12]}…")
    for called in (key, name, name[:12]):
        shown = call("show", called, "--folder", folder).stdout
        assert name in shown and shown.splitlines()[0].endswith(key if called == key else name)
    call("rename", key, "user/8 of acme", "--folder", folder)
    renamed = hashlib.sha256(b"user/8 of acme").hexdigest()
    assert MemoryShelf(folder).names() == [renamed]
    assert "There is none yet" in call("show", "anna", code=1).stderr


def test_the_last_turns_of_a_memory_are_taken_back(run_cli: RunCli, tmp_path: Path) -> None:
    for text in ("anna lives in oslo .", "anna lives in paris ."):
        assert run_cli("generate", text, "--memory", "anna").returncode == 0
    path = MemoryShelf().path("anna")
    line = call("list").stdout.splitlines()[1]
    assert "can undo" in call("list").stdout and line.split()[2] == "2"
    assert json.loads(call("list", "--json").stdout)[0]["undo_turns"] == 2
    undone = call("undo", "anna").stdout
    assert undone.startswith("Took back 1 turn of anna, 13 tokens: ") and "1 more can be" in undone
    asked = run_cli("generate", "where does anna live ?", "--memory", "anna", "--read-only")
    assert "oslo" in asked.stdout
    too_many = call("undo", path, "-n", "2", code=1).stderr
    assert f"{path}: 2 turns cannot be taken back: the last 1" in too_many
    whole = json.loads(call("undo", path, "--json").stdout)
    assert (whole["undo_turns"], whole["tokens_written"]) == (0, 0)
    assert "none is kept" in call("undo", "anna", code=1).stderr
    assert "No memory file" in call("undo", tmp_path / "gone.safetensors", code=1).stderr
    folder = tmp_path / "memories"
    folder.mkdir()
    name = hashlib.sha256(b"key").hexdigest()
    path.rename(folder / f"{name}.safetensors")
    assert "none is kept" in call("undo", "key", "--folder", folder, code=1).stderr


@pytest.mark.parametrize(
    "given, path",
    [
        ("anna", None),
        ("anna-2 b", None),
        ("Änne", None),
        ("anna.safetensors", "anna.safetensors"),
        ("./x/anna.SAFETENSORS", "x/anna.SAFETENSORS"),
        ("~/anna.safetensors", str(Path.home() / "anna.safetensors")),
    ],
)
def test_a_name_is_told_from_a_path(given: str, path: str | None) -> None:
    expected = memories_folder() / f"{given}.safetensors" if path is None else Path(path)
    assert memory_path(given) == expected


@pytest.mark.parametrize("given", ["", ".", "..", "a/b", "a.b", "~", "-x", "x" * 65, "a\nb"])
def test_what_is_neither_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="neither a memory's name"):
        memory_path(given)


def test_all_are_asked_which_of_them_knows(shelf: MemoryShelf, qwen3_tiny: Path) -> None:
    session = dm.MemorySession(*dm.load())
    session.remember("ben is a doctor .")
    session.save(shelf.folder / "ben.safetensors")
    other, tokenizer = dm.load(qwen3_tiny)
    dm.attach(other, dm.DeltaMemConfig(), seed=1)
    dm.MemorySession(other, tokenizer).save(shelf.folder / "other.safetensors")
    before = {name: shelf.path(name).read_bytes() for name in shelf.names()}
    done = call("ask", "where does anna live ?")
    first, rest = done.stdout.splitlines()
    assert first == "anna  anna lives in oslo."
    assert rest.startswith("No better than without a memory (")
    assert rest.endswith(": ben")
    assert "1 of other adapters" in done.stderr
    found = json.loads(call("ask", "what is the job of ben ?", "--json").stdout)
    assert [answer["name"] for answer in found] == ["ben", "anna"]
    assert found[0]["gain"] > 1
    assert {name: shelf.path(name).read_bytes() for name in shelf.names()} == before


def test_one_memory_is_asked_and_the_default_one_does_not_narrow_it(
    shelf: MemoryShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    call("copy", "anna", "ben")
    monkeypatch.setenv("DELTAMEM_MEMORY", "ben")
    done = call("ask", "where does anna live ?")
    assert len(done.stdout.splitlines()) == 2 and "never told" in done.stderr
    alone = call("ask", "where does anna live ?", "--memory", "anna")
    assert alone.stdout == "anna  anna lives in oslo.\n"
    assert "A whole question" in call("ask", "anna", "--memory", "anna").stderr
    assert "Did you mean anna?" in call("ask", "anna ?", "--memory", "ana", code=1).stderr


def test_what_is_about_as_likely_without_a_memory_is_not_taken_for_knowing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = [("anna", "anna lives in oslo.", 16.0), ("ben", "noted.", 0.2), ("tom", "i see.", 0.3)]
    _report([{"name": n, "answer": a, "without": "i see.", "gain": gain} for n, a, gain in said])
    assert capsys.readouterr().out.splitlines() == [
        "anna  anna lives in oslo.",
        "About as likely without a memory: ben ('noted.')",
        "No better than without a memory ('i see.'): tom",
    ]


def test_a_name_gets_capitals_where_the_disk_takes_both_for_one(
    shelf: MemoryShelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on most Macs: there `Anna` is there already where `anna` is."""
    anna, capital = (memory_path(name, shelf.folder) for name in ("anna", "Anna"))
    with pytest.raises(FileNotFoundError):
        capital.stat()
    os.link(anna, capital)  # so that one file answers to both
    moved = []
    monkeypatch.setattr(os, "rename", lambda old, new: moved.append((old, new)))
    assert shelf.rename("anna", "Anna") == capital
    assert moved[0] == (anna, capital)
    with pytest.raises(FileExistsError):
        shelf.rename("anna", "anna")


def test_ask_says_where_there_is_nothing_to_ask(tmp_path: Path) -> None:
    assert "no memories in" in call("ask", "hi .", "--folder", tmp_path).stdout
    assert json.loads(call("ask", "hi .", "--folder", tmp_path, "--json").stdout) == []
    (tmp_path / "file").write_text("x")
    assert "is a file; expected a folder" in call("--folder", tmp_path / "file", code=1).stderr
    assert "is empty" in call("ask", " ", code=2).stderr
    assert "Give --adapter" in call("ask", "hi .", "--model", "x", code=2).stderr


def test_inspect_knows_names(shelf: MemoryShelf) -> None:
    done = CliRunner().invoke(app, ["inspect", "anna"])
    assert done.exit_code == 0, done.stderr
    assert "tokens have been written into anna" in done.stdout


def test_a_name_comes_before_what_is_called_so_here(
    shelf: MemoryShelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = tmp_path / "anna"
    here.mkdir()
    (here / "notes.txt").write_text("anna lives in rome .")
    looked = CliRunner().invoke(app, ["inspect", "anna"])
    assert "tokens have been written into anna" in looked.stdout
    assert "anna is taken for the memory of that name; the folder here is ./anna" in looked.stderr
    assert CliRunner().invoke(app, ["inspect", "./anna"]).exit_code == 1
    loaded = CliRunner().invoke(app, ["chat"], input="/load anna\n/load ./anna\nq\n")
    assert "loaded anna: " in loaded.stderr
    assert "anna is no saved session" in loaded.stderr
    here.rename(tmp_path / "texts")
    here.write_text("a file")
    looked = CliRunner().invoke(app, ["inspect", "anna"])
    assert "the file here is ./anna" in looked.stderr
    assert looked.stdout.startswith(tuple("123456789"))


def test_where_none_is_named_it_is_the_default_memory(
    shelf: MemoryShelf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for command in (["show"], ["undo"], ["export", tmp_path / "a.safetensors"]):
        assert "Say which memory" in call(*command, code=2).stderr
    assert "The file to write is missing: " in call("export", "anna", code=2).stderr
    monkeypatch.setenv("DELTAMEM_MEMORY", "anna")
    assert "memories export anna FILE" in call("export", "anna", code=2).stderr
    assert call("show").stdout.splitlines()[0].split() == ["memory", "anna"]
    assert "cannot be taken back" in call("undo", code=1).stderr
    out = tmp_path / "a.safetensors"
    call("export", out)
    assert out.read_bytes() == shelf.path("anna").read_bytes()
    assert "Expected a memory and a file; found 3" in call("export", "a", "b", "c", code=2).stderr
    monkeypatch.setenv("DELTAMEM_MEMORY", str(out))
    assert str(out) in call("show").stdout
    assert "Say which memory" in call("show", "--folder", shelf.folder, code=2).stderr
    looked = CliRunner().invoke(app, ["inspect"])
    assert "tokens have been written into a.safetensors" in looked.stdout
    missed = CliRunner().invoke(app, ["inspect", "ana"])
    assert (missed.exit_code, "Did you mean anna?" in missed.stderr) == (1, True)


def test_show_lists_the_turns_and_what_is_left_of_each(tmp_path: Path) -> None:
    session, path = dm.MemorySession(*dm.load()), tmp_path / "me.safetensors"
    facts = ("anna lives in oslo .", "ben is a doctor .")
    session.remember([{"role": "user", "content": fact} for fact in facts])
    session.forget_context()
    session.ask("where does anna live ?")
    session.save(path, history=64)
    found = json.loads(call("show", path, "--json").stdout)["turns"]
    assert [(turn["messages"], turn["answers"]) for turn in found] == [(2, 0), (2, 1)]
    assert sum(turn["tokens"] for turn in found) == session.stats()["tokens_written"]
    assert 0 < found[0]["left"] != found[1]["left"] == pytest.approx(1)
    lines = call("show", path).stdout.splitlines()
    (asked,) = (line.split() for line in lines if "a message and its answer" in line)
    (told,) = (line.split() for line in lines if "told 2 messages" in line)
    assert (asked[0], asked[-1], told[0]) == ("1", "100%", "2")
    session.reset()
    session.save(path, history=64)
    emptied = json.loads(call("show", path, "--json").stdout)["turns"]
    assert emptied[-1]["tokens"] < 0 and emptied[0]["left"] == pytest.approx(0)
    assert "emptied" in call("show", path).stdout


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """A memory file that was told two files in one context each."""
    session, path = dm.MemorySession(*dm.load()), tmp_path / "me.safetensors"
    for name, fact in (("a.txt", "anna lives in oslo ."), ("b.txt", "ben is a doctor .")):
        (tmp_path / name).write_text(fact)
        session.remember(tmp_path / name)
    session.save(path, history=64)
    return path


def test_what_was_taken_back_is_put_back_until_the_memory_is_written(told: Path) -> None:
    whole = told.read_bytes()
    done = call("undo", told)
    assert "b.txt" in done.stderr and "a.txt" not in done.stderr
    assert f"memories redo {told}" in done.stderr
    call("undo", told)
    assert call("redo", told).stdout.startswith(f"Put back 2 turns of {told}: ")
    assert told.read_bytes() == whole
    assert "nothing to put back" in call("redo", told, code=1).stderr
    for written in (True, False):
        call("undo", told, *([] if written else ["--for-good"]))
        if written:
            session = dm.MemorySession.restore(told, *dm.load())
            session.remember("mia likes tea .")
            session.save(told)
        assert "nothing to put back" in call("redo", told, code=1).stderr
        assert not list(told.parent.glob(".*"))


def test_the_first_of_what_was_taken_back_is_put_back_and_the_rest_can_be(told: Path) -> None:
    whole = told.read_bytes()
    call("undo", told)
    after_one = read_memory(told)
    call("undo", told)
    for turns, code, why in ((0, 2, "--turns"), (3, 1, "2 were taken back")):
        assert why in call("redo", told, "--turns", turns, code=code).stderr
    done = call("redo", told, "--turns", 1)
    assert done.stdout.startswith(f"Put back 1 turn of {told}: ")
    assert "a.txt" in done.stderr and "b.txt" not in done.stderr
    again = read_memory(told)
    assert again.tokens_written == after_one.tokens_written
    assert all(np.array_equal(x, again.states[i]) for i, x in after_one.states.items())
    call("undo", told)  # and what is taken once more is put back with the rest
    assert call("redo", told, "-n", 2).stdout.startswith(f"Put back 2 turns of {told}: ")
    assert told.read_bytes() == whole


def test_what_was_taken_back_goes_with_the_memory(told: Path) -> None:
    shelf = MemoryShelf()
    shelf.take_in(told, "me")
    call("undo", "me")
    call("rename", "me", "you")
    assert call("redo", "you").stdout.startswith("Put back 1 turn of you")
    call("undo", "you")
    call("remove", "you", "--yes")
    assert not list(shelf.folder.iterdir())


def test_in_a_terminal_undo_shows_the_turns_and_asks(told: Path, nursery: Nursery) -> None:
    whole = told.read_bytes()
    for answer, code in (("n\r", 1), ("\x03", 130), ("y\r", 0)):
        assert told.read_bytes() == whole
        terminal = Terminal(["memories", "undo", told, "-n", "2"], told.parent, nursery)
        terminal.until("Take these 2 turns back?")
        terminal.type(answer)
        assert terminal.end() == code
        terminal.close()
    assert told.read_bytes() != whole


def test_a_turn_told_while_undo_asks_is_not_taken_back(
    told: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confirmed(*_: object, **__: object) -> bool:
        session = dm.MemorySession.restore(told, *dm.load())
        session.remember("mia likes tea .")
        session.save(told)
        return True

    monkeypatch.setattr(output, "can_ask", lambda: True)
    monkeypatch.setattr(typer, "confirm", confirmed)
    assert "has been saved by another program" in call("undo", told, code=1).stderr
    assert len(read_memory(told).history) == 3


def test_what_cannot_be_taken_back_or_put_back_is_said_by_the_name(shelf: MemoryShelf) -> None:
    for words in (["undo", "anna", "-n", "9"], ["redo", "anna"]):
        said = call(*words, code=1).stderr
        assert said.startswith("Error: anna: ") and str(shelf.folder) not in said
    assert "9 turns cannot be taken back" in call("undo", "anna", "-n", "9", code=1).stderr
    assert "there is nothing to put back" in call("redo", "anna", code=1).stderr


def test_which_pair_answers_is_said_when_a_memory_begins(shelf: MemoryShelf) -> None:
    ask = ["generate", "where does anna live ?", "--memory"]
    assert "The built-in pair answers." in CliRunner().invoke(app, [*ask, "garden"]).stderr
    assert "The built-in pair answers." not in CliRunner().invoke(app, [*ask, "anna"]).stderr
