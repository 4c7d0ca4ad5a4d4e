"""`deltamem-mlx remember`: files into a memory, watched and stopped as one likes."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from forked import Nursery
from terminal import Terminal
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.main import app
from deltamem_mlx.memory.file import read_memory, write_memory
from deltamem_mlx.memory.kept import kept_turns

FACTS = ["anna lives in oslo .", "ben is a doctor .", "mia likes tea ."]


def call(*args: str | Path, input: str | None = None) -> Result:
    done = CliRunner().invoke(app, ["remember", *map(str, args)], input=input)
    assert not isinstance(done.exception, Exception), done.exception
    return done


@pytest.fixture
def memory(tmp_path: Path) -> Path:
    return tmp_path / "me.safetensors"


def test_a_folder_and_standard_input_are_written_and_asked_for_later(
    run_cli: RunCli, tmp_path: Path, memory: Path
) -> None:
    (tmp_path / "notes").mkdir()
    for name, fact in zip(("a.md", "b.txt"), FACTS, strict=False):
        (tmp_path / "notes" / name).write_text(fact)
    done = run_cli("remember", "notes", "-", "--memory", memory, input=FACTS[2])
    assert done.returncode == 0, done.stderr
    assert "me.safetensors: " in done.stdout
    assert " tokens of 3 files written in " in done.stdout
    told = re.findall(r"Remembered (.*): [1-9]\d* tokens\.", done.stderr)
    assert told == ["notes/a.md", "notes/b.txt", "standard input"]
    asked = run_cli("generate", "--memory", memory, "--prompt", "what is the job of ben ?")
    assert asked.stdout == "ben is a doctor.\n"


def test_it_writes_what_a_session_would(tmp_path: Path, memory: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("\n\n".join(FACTS))
    done = call(path, "--memory", memory, "--json")
    assert done.exit_code == 0, done.stderr
    session = dm.MemorySession(*dm.load())
    tokens = session.remember(path)
    for layer, state in dm.memory_state(session.cache).items():
        assert np.allclose(np.array(state), read_memory(memory).states[layer], atol=1e-5)
    said = json.loads(done.stdout)
    assert (said["files"], said["messages"], said["tokens"]) == (1, 3, tokens)
    assert said["tokens_written"] == read_memory(memory).tokens_written[0] == tokens
    assert said["stopped_in"] is None
    again = json.loads(call(path, "--memory", memory, "--json").stdout)
    assert again["tokens_written"] == 2 * tokens


def test_what_was_stopped_is_gone_on_with(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(FACTS[:2]))
    (tmp_path / "b.txt").write_text(FACTS[2])
    files = (tmp_path / "a.txt", tmp_path / "b.txt")
    found = [
        json.loads(call(*files, "--memory", memory, "--skip", str(n), "--json").stdout)
        for n in (0, 1, 2)
    ]
    assert [(f["files"], f["messages"], f["skip"]) for f in found] == [
        (2, 3, 3),
        (2, 2, 3),
        (1, 1, 3),
    ]
    done = call(*files, "--memory", memory, "--skip", "3")
    assert done.exit_code == 2
    assert "there are 3 messages only" in done.stderr


def test_nothing_is_written_where_one_file_cannot_be(tmp_path: Path, memory: Path) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_text(FACTS[0])
    bad.write_bytes(b"\xff\xfe")
    done = call(good, bad, "--memory", memory)
    assert done.exit_code == 1
    assert "bad.txt:1 is not UTF-8 text" in done.stderr
    assert not memory.exists()


@pytest.mark.parametrize(
    "args, said",
    [
        ([], "Missing argument 'FILE...'"),
        (["a.txt"], "Say which memory is to remember: --memory NAME, or"),
        (["a.txt", "--memory", "m.bin"], "m.bin"),
        (["a.safetensors", "--memory", "m.safetensors"], "'a.safetensors' is no text"),
        (["-", "--memory", "m.safetensors"], "standard input is empty"),
        (["a.txt", "--memory", "m.safetensors", "--model", "x"], "Give --adapter"),
    ],
)
def test_wrong_use_is_named(args: list[str], said: str) -> None:
    done = call(*args, input="")
    assert done.exit_code == 2
    assert said in done.stderr


def test_ctrl_c_ends_it_between_two_steps_and_what_was_written_is_saved(
    tmp_path: Path, memory: Path, nursery: Nursery
) -> None:
    paragraphs = [FACTS[i % 3] for i in range(6000)]
    (tmp_path / "long.txt").write_text("\n\n".join(paragraphs))
    terminal = Terminal(["remember", "long.txt", "--memory", memory], tmp_path, nursery, 120)
    # The bar: tokens so far and in all, and the time that is left.
    terminal.until(" of about ")
    terminal.until("0:")
    terminal.interrupt()
    assert terminal.end() == 130
    found = re.search(
        r"Stopped in long.txt: ([\d,]+) tokens were written and saved to .*--skip (\d+)",
        terminal.shown,
        re.S,
    )
    assert found is not None, terminal.shown
    assert f"{memory}"[:60] in terminal.shown.replace("\n", "")
    tokens, skip = (int(number.replace(",", "")) for number in found.groups())
    terminal.close()
    assert read_memory(memory).tokens_written == [tokens]
    session, written = dm.MemorySession(*dm.load(), max_context=4096), 0
    for step in session.remembering([{"role": "user", "content": p} for p in paragraphs]):
        if (written := step.tokens) >= tokens and step.messages:
            break
    assert written == tokens
    assert skip == step.messages
    for layer, state in dm.memory_state(session.cache).items():
        assert np.array_equal(np.array(state), read_memory(memory).states[layer])


def test_what_is_told_twice_is_said_and_written_again(tmp_path: Path, memory: Path) -> None:
    path = tmp_path / "facts.txt"
    path.write_text("\n\n".join(FACTS[:2]))
    first = call(path, "--memory", memory)
    assert "before" not in first.stderr
    tokens = read_memory(memory).tokens_written[0]
    again = call(path, "--memory", memory)
    assert f"{path}: this memory was told it before, and is told again.\n" in again.stderr
    assert f"To take that back: deltamem-mlx memories undo {memory}\n" in again.stderr
    assert read_memory(memory).tokens_written == [2 * tokens]
    path.write_text("\n\n".join(FACTS))
    assert "told 2 of its 3 paragraphs before" in call(path, "--memory", memory).stderr


def test_pictures_and_the_like_in_a_folder_are_named(tmp_path: Path, memory: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.md").write_text(FACTS[0])
    (tmp_path / "notes" / "photo.png").write_bytes(b"\x89PNG")
    done = call(tmp_path / "notes", "--memory", memory)
    assert "photo.png is neither text nor messages by its name" in done.stderr
    assert read_memory(memory).tokens_written[0] > 0


def test_notes_stand_above_the_bar_whose_total_is_known_from_the_start(
    tmp_path: Path, memory: Path, nursery: Nursery
) -> None:
    (tmp_path / "big").mkdir()
    for name, fact, count in (("n1", FACTS[0], 60), ("n2", "anna .", 90), ("n3", FACTS[1], 40)):
        (tmp_path / "big" / f"{name}.txt").write_text("\n\n".join([fact] * count))
    terminal = Terminal(["remember", "big", "--memory", memory.name], tmp_path, nursery, 100)
    first = terminal.until_match(r"of about ([\d,]+) tokens")
    terminal.until("second), ")
    assert terminal.end() == 0
    _, *lines = [line for line in terminal.shown.splitlines() if line]  # the memory is new
    terminal.close()
    assert len(lines) == 4, terminal.shown
    for line, name in zip(lines, ("n1", "n2", "n3"), strict=False):
        assert re.fullmatch(rf"Remembered big/{name}.txt: [\d,]+ tokens\.", line)
    guessed = int(first[1].replace(",", ""))
    assert read_memory(memory).tokens_written[0] == pytest.approx(guessed, rel=0.1)


def test_each_turn_has_its_files_name_and_the_time_it_was_written(
    tmp_path: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("a.txt", "b.txt", "c.txt")
    for name, fact in zip(names, FACTS, strict=True):
        Path(name).write_text(fact)
    call("a.txt", "--memory", memory)
    old = read_memory(memory)
    long_ago = replace(old.history[0], at="2020-01-01T00:00:00+00:00")
    write_memory(memory, replace(old, created=long_ago.at, history=(long_ago,)))
    began = datetime.now(UTC).replace(microsecond=0)
    call("b.txt", str(tmp_path / "c.txt"), "--memory", memory)
    first, *later = kept_turns(read_memory(memory))
    assert first.saved == long_ago.at
    assert all(datetime.fromisoformat(turn.saved) >= began for turn in later)
    assert [turn.source for turn in (first, *later)] == list(names)
    shown = CliRunner().invoke(app, ["memories", "show", str(memory)]).stdout
    assert [line.split()[3] for line in shown.splitlines() if ".txt" in line] == list(names)[::-1]


def test_only_what_is_new_is_told_and_all_that_was_can_be_taken_back(
    tmp_path: Path, memory: Path
) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text(FACTS[0])
    (notes / "b.txt").write_text(FACTS[1])
    call(notes, "--memory", memory, "--only-new")
    before = read_memory(memory)
    assert "nothing new in 2 files." in call(notes, "--memory", memory, "--only-new").stdout
    none = json.loads(call(notes, "--memory", memory, "--only-new", "--json").stdout)
    (notes / "b.txt").write_text("\n\n".join(FACTS[1:]))
    done = json.loads(call(notes, "--memory", memory, "--only-new", "--json").stdout)
    assert (done["files"], done["messages"]) == (1, 1)
    assert none.keys() == done.keys()
    assert none["tokens_written"] == sum(before.tokens_written)
    again = call(notes, "--memory", memory)
    line = f"To take these 2 turns back: deltamem-mlx memories undo {memory} --turns 2"
    assert again.stderr.count("To take") == 1 and line in again.stderr
    CliRunner().invoke(app, ["memories", "undo", str(memory), "--turns", "3"])
    assert read_memory(memory).tokens_written == before.tokens_written
    assert call(notes, "--memory", memory, "--only-new", "--skip", "1").exit_code == 2
