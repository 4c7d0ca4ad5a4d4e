"""`deltamem-mlx chat` in a terminal: edited, completed, pasted, resized, interrupted."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from forked import Nursery
from terminal import Terminal

import deltamem_mlx as dm
from deltamem_mlx.files.places import chat_history_file, memories_folder
from deltamem_mlx.memory.file import read_memory

Open = Callable[..., Terminal]


@pytest.fixture
def chat(tmp_path: Path, nursery: Nursery) -> Iterator[Open]:
    """Opens chats with the built-in pair; each is ready to be typed into."""
    opened: list[Terminal] = []

    def open_(*flags: str | Path, **size: int) -> Terminal:
        opened.append(Terminal(["chat", *flags], tmp_path, nursery, **size))
        opened[-1].until("›")
        return opened[-1]

    yield open_
    for terminal in opened:
        terminal.close()


def said(session: dm.MemorySession) -> list[str]:
    return [str(m["content"]) for m in session.messages if m["role"] == "user"]


def saved(path: Path) -> list[str]:
    """What the user said, of a session that was saved to a folder."""
    values = json.loads((path / "session.json").read_text())
    return [m["content"] for m in values["messages"] if m["role"] == "user"]


def test_an_answer_ends_with_what_was_written_most_strongly_and_the_memorys_size(
    chat: Open,
) -> None:
    terminal = chat()
    assert "deltamem-mlx chat" in terminal.shown
    terminal.type("anna lives in oslo .\r")
    line = terminal.until("KB").splitlines()
    (written,) = [part.strip() for part in line if part.strip().startswith("+")]
    found = re.fullmatch(
        r"\+(\d+) tokens · oslo (0\.\d\d)(?: · \w+ 0\.\d\d)* · memory (\d+) tokens in 6\.1 KB",
        written,
    )
    assert found is not None, written
    assert found[1] == found[3]
    assert float(found[2]) > 0.5
    terminal.type("exit\r")
    terminal.until("bye")
    assert terminal.end() == 0


def test_what_is_pasted_is_one_turn_and_so_is_what_has_several_lines(
    chat: Open, tmp_path: Path
) -> None:
    terminal = chat()
    terminal.paste("ben is a doctor .\nmia likes tea .")
    terminal.settle()
    assert "tok/s" not in terminal.shown
    terminal.type("\r")
    terminal.until("tok/s", 1)
    terminal.type("anna lives\x1b\rin oslo .\r")
    terminal.until("tok/s", 2)
    terminal.type('"""\rleo is a cook .\r\rleo likes jam .\r"""\r')
    terminal.until("tok/s", 3)
    terminal.type("/save ./all\r")
    terminal.until("saved")
    assert saved(tmp_path / "all") == [
        "ben is a doctor .\nmia likes tea .",
        "anna lives\nin oslo .",
        "leo is a cook .\n\nleo likes jam .",
    ]


def test_commands_and_paths_are_completed(chat: Open, tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("ben is a doctor .")
    terminal = chat()
    terminal.type("/re")
    shown = terminal.until("answer the last question anew")
    for command in ("/remember", "/retry", "/reset"):
        assert command in shown
    terminal.type("m")
    terminal.until_gone("/retry")
    terminal.until("/remember")
    terminal.type("\t")
    terminal.until("› /remember")
    terminal.type(" my")
    terminal.until("my notes.txt")
    terminal.type("\t")
    terminal.until("my\\ notes.txt")
    terminal.type("\r")
    assert "tokens of my notes.txt" in terminal.until("remembered")
    memories_folder().mkdir(parents=True)
    (memories_folder() / "mia.safetensors").write_bytes(b"")
    (tmp_path / "mine.safetensors").write_bytes(b"")
    terminal.type("/lo")
    terminal.until("/load")
    terminal.type("\t")
    terminal.until("› /load")
    terminal.type("m")  # the space has come with it
    terminal.until("› /load m")
    terminal.until("mia")
    terminal.type("\t")
    terminal.until("› /load mia")
    terminal.type("\x15/load ./mi")
    terminal.until("mine.safetensors")
    terminal.type("\t")
    terminal.until("› /load ./mine.safetensors")


def test_what_was_typed_is_there_the_next_time(chat: Open) -> None:
    first = chat()
    first.type("anna lives in oslo .\r")
    first.until("tok/s")
    first.type("q\r")
    assert first.end() == 0
    assert chat_history_file().stat().st_mode & 0o777 == 0o600
    second = chat("--markdown")
    second.type("\x1b[A\x1b[A")
    second.until("› anna lives in oslo .")
    second.type("\r")
    second.until("tok/s")


def test_a_resized_terminal_is_filled(chat: Open) -> None:
    terminal = chat(columns=90)
    terminal.resize(50)
    terminal.type("anna lives in oslo and ben lives in rome and mia lives in")
    terminal.settle()
    terminal.type(" paris .\r")
    shown = terminal.until("KB")
    assert max(map(len, shown.splitlines())) <= 50
    terminal.resize(120)
    terminal.type("where does anna live ?\r")
    terminal.until("tok/s", 2)
    assert "─" * 119 in terminal.settle()


def test_ctrl_c_while_the_prompt_is_read_takes_the_turn_back(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    terminal = chat("--memory", path, "--prefill-step-size", "2")
    terminal.type("ben is a doctor .\r")
    terminal.until("KB")
    before = read_memory(path).tokens_written
    terminal.paste("anna lives in oslo . " * 160)
    terminal.settle()
    terminal.type("\r")
    terminal.until("reading ")
    terminal.until(" of 80")
    terminal.interrupt()
    terminal.until("stopped while reading: nothing of it was written")
    terminal.type("what is the job of ben ?\r")
    terminal.until("ben is a doctor.")
    terminal.settle()
    assert read_memory(path).tokens_written[0] < before[0] + 100


def test_ctrl_c_stops_an_answer_and_leaves_the_prompt(
    chat: Open, qwen3_tiny: Path, tmp_path: Path
) -> None:
    model, tokenizer = dm.load(qwen3_tiny)
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, tmp_path / "adapter")
    answer = dm.MemorySession(model, tokenizer).ask("I am Al.", max_tokens=30)
    terminal = chat("--model", qwen3_tiny, "--adapter", tmp_path / "adapter", "-m", "20000")
    terminal.type("I am Al.\r")
    terminal.until(max(answer.splitlines(), key=len).strip()[:12])
    terminal.interrupt()
    assert " ..." in terminal.until("tok/s")
    terminal.type("\x03")
    terminal.until("q leaves")
    terminal.type("\x04")
    terminal.until("bye")
    assert terminal.end() == 0


def test_ctrl_c_ends_remembering_and_undo_takes_all_of_it_back(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    (tmp_path / "long.txt").write_text("\n\n".join(["anna lives in oslo ."] * 6000))
    terminal = chat("--memory", path)
    terminal.type("ben is a doctor .\r")
    terminal.until("KB")
    told = read_memory(path).tokens_written
    terminal.type("/remember long.txt\r")
    terminal.until(" 1,")  # of some thousands of tokens
    terminal.interrupt()
    shown = terminal.until("were not.")
    tokens = re.search(r"Stopped in long.txt: ([\d,]+) tokens were written", shown)
    assert tokens is not None
    assert read_memory(path).tokens_written[0] == told[0] + int(tokens[1].replace(",", ""))
    terminal.type("/undo\r")
    terminal.until("undone 1 turn")
    assert read_memory(path).tokens_written == told


def test_a_history_that_cannot_be_kept_is_no_error(chat: Open) -> None:
    chat_history_file().mkdir(parents=True)
    terminal = chat()
    terminal.type("anna lives in oslo .\r")
    terminal.until("KB")
    terminal.type("q\r")
    terminal.until("bye")
    assert terminal.end() == 0


def test_a_reset_asks_and_can_be_undone(chat: Open, tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    terminal = chat("--memory", path)
    terminal.type("r\r")  # there is nothing to lose
    terminal.until("cleared", 1)
    terminal.type("ben is a doctor .\r")
    terminal.until("KB")
    told = read_memory(path).tokens_written
    terminal.type("/reset\r")
    terminal.until("[y/N]")
    terminal.type("\r")
    terminal.until("nothing was done")
    assert read_memory(path).tokens_written == told
    terminal.type("/reset\r")
    terminal.until("[y/N]", 2)
    terminal.type("y\r")
    terminal.until("cleared", 2)
    assert read_memory(path).tokens_written == [0]
    terminal.type("/undo\r")
    terminal.until("undone 1 turn")
    assert read_memory(path).tokens_written == told
