"""Every command that reads text refuses what is none, and names the file and the place."""

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.cli.main import app
from deltamem_mlx.text.unknown import unknown_words

MESSAGE = {"role": "user", "content": "anna lives in oslo ."}
REPLY = {"role": "assistant", "content": "noted ."}
HOTPOT = {
    "_id": "q1",
    "question": "where does anna live ?",
    "answer": "oslo",
    "context": [["anna", ["anna lives in oslo ."]]],
    "supporting_facts": [["anna", 0]],
}
EPISODE = {"tell": [MESSAGE], "question": "where does anna live ?", "answer": "oslo", "facts": 1}


def call(*args: object, input: bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args], input=input)


def remember(path: Path) -> Result:
    return call("generate", "--prompt", "Who?", "-m", "2", "--remember", path)


def trace(path: Path) -> Result:
    return call("inspect", "--trace", path)


def train(path: Path) -> Result:
    pair = ("--model", builtin.base_folder(), "--adapter-path", path.parent / "out")
    return call("train", *pair, "--data", path, "--iters", "1")


def evaluation(name: str) -> Callable[[Path], Result]:
    return lambda path: call("eval", name, path)


def recall(path: Path) -> Result:
    return call("eval", "recall", "--data", path)


TEXTS = {"remember": remember, "trace": trace, "perplexity": evaluation("perplexity")}
ROWS = {
    "remember": (remember, MESSAGE),
    "trace": (trace, MESSAGE),
    "train": (train, {"messages": [MESSAGE, REPLY]}),
    "perplexity": (evaluation("perplexity"), {"messages": [MESSAGE, REPLY]}),
    "hotpotqa": (evaluation("hotpotqa"), HOTPOT),
    "locomo": (evaluation("locomo"), HOTPOT),
    "memoryagentbench": (evaluation("memoryagentbench"), HOTPOT),
    "recall": (recall, EPISODE),
}


def refused(done: Result, *said: str) -> None:
    assert (done.exit_code, done.stdout) == (1, ""), done.output
    assert done.stderr.startswith("Error: ")
    assert all(part in done.stderr for part in said), done.stderr
    for bad in ("Traceback", "TypeError", "codec", "--debug"):
        assert bad not in done.stderr


NO_TEXT = {
    "latin-1": ("anna\nlives in caf\xe9 .".encode("latin-1"), ":2 is not UTF-8 text"),
    "utf-16": ("anna".encode("utf-16"), ":1 is not UTF-8 text but UTF-16"),
    "utf-16-le": ("anna\nben".encode("utf-16-le"), ":1 is not text"),
    "null": (b"anna\n\nben\0", ":3 is not text"),
    "docx": (b"PK\3\4\x14\0\6\0[Content_Types].xml", ":1 is not text: it is an archive"),
    "pdf": (b"%PDF-1.7\n1 0 obj << /Length 9 >>", ":1 is not text: it is a PDF"),
    "half": (b"anna \xf0\x9f\x98", ":1 is not UTF-8 text"),
    "surrogate": (b"anna \xed\xa0\xbd", ":1 is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", NO_TEXT)
@pytest.mark.parametrize("reader", TEXTS)
@pytest.mark.parametrize("suffix", [".txt", ".MD"])
def test_a_file_that_is_no_text_is_refused(
    reader: str, kind: str, suffix: str, tmp_path: Path
) -> None:
    data, said = NO_TEXT[kind]
    path = tmp_path / f"notes{suffix}"
    path.write_bytes(data)
    refused(TEXTS[reader](path), f"{path}{said}")


@pytest.mark.parametrize("name", ["notes.docx", "notes.pdf", "notes"])
@pytest.mark.parametrize("reader", ["remember", "trace"])
def test_a_document_is_refused_whatever_its_name(reader: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(NO_TEXT["docx"][0])
    refused(TEXTS[reader](tmp_path / name), f"{tmp_path / name}:1 is not text")


NO_ROW = {
    "latin-1": ('"caf\xe9"'.encode("latin-1"), "not UTF-8 text"),
    "utf-16": ('"a"'.encode("utf-16"), "not UTF-8 text but UTF-16"),
    "utf-16-le": ('"a"'.encode("utf-16-le"), "not text"),
    "null": (b'"a\0"', "not text"),
    "half": (b'{"content": "cut \\ud83d"}', "content holds half a character (U+D83D)"),
    "deep": (b"[" * 100_000, "too deeply nested"),
    "digits": (b"1" * 5000, "a number too long"),
    "json": (b'{"a": ', "not valid JSON"),
}


@pytest.mark.parametrize("kind", NO_ROW)
@pytest.mark.parametrize("reader", ROWS)
def test_a_line_that_holds_no_row_is_refused_with_its_number(
    reader: str, kind: str, tmp_path: Path
) -> None:
    (read, row), (line, said) = ROWS[reader], NO_ROW[kind]
    path = tmp_path / "rows.JSONL"
    path.write_bytes(json.dumps(row).encode() + b"\n" + line + b"\n")
    refused(read(path), f"{path}:2", said)


@pytest.mark.parametrize("kind", NO_ROW)
@pytest.mark.parametrize("reader", sorted(ROWS.keys() - {"recall"}))
def test_a_json_file_that_holds_no_rows_is_refused(reader: str, kind: str, tmp_path: Path) -> None:
    (read, row), (item, said) = ROWS[reader], NO_ROW[kind]
    path = tmp_path / "rows.JSON"
    if kind == "utf-16":
        path.write_bytes(json.dumps([row]).encode("utf-16"))
    else:
        path.write_bytes(b"[" + json.dumps(row).encode() + b",\n" + item + b"]")
    refused(read(path), str(path), said)


@pytest.mark.parametrize("suffix", [".jsonl", ".JSONL", ".Json"])
def test_suffixes_are_known_in_capitals(suffix: str, tmp_path: Path) -> None:
    found = []
    for name in (f"small{suffix.lower()}", f"large{suffix}"):
        path = tmp_path / name
        path.write_text(json.dumps(MESSAGE))
        done = remember(path)
        assert done.exit_code == 0, done.output
        found.append(done.stderr.partition(f"{path}: ")[2].partition(" tokens")[0])
    assert found[0] == found[1] != ""


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"caf\xe9", "standard input:1 is not UTF-8 text"),
        (b"where\n\ncaf\xe9 ?", "standard input:3 is not UTF-8 text"),
        ("where ?".encode("utf-16"), "standard input:1 is not UTF-8 text but UTF-16"),
        (b"where\0", "standard input:1 is not text"),
    ],
)
def test_a_prompt_that_is_no_text_is_refused(data: bytes, said: str) -> None:
    refused(call("generate", "--prompt", "-", "-m", "2", input=data), said)


@pytest.mark.parametrize(
    ("command", "flag"),
    [
        (("generate",), "--prompt"),
        (("generate", "--prompt", "a"), "--system-prompt"),
        (("chat",), "--system-prompt"),
        (("inspect", "me.safetensors"), "--probe"),
        (("inspect", "me.safetensors", "--probe", "a"), "--answer"),
        (("serve",), "--api-key"),
    ],
)
@pytest.mark.parametrize("text", ["caf\udce9", "\ud83d"])
def test_a_flag_that_is_no_text_is_named(command: tuple[str, ...], flag: str, text: str) -> None:
    done = call(*command, flag, text)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f"Error: {flag} holds " in done.stderr


def test_a_chat_says_which_line_is_no_text_and_goes_on() -> None:
    lines = [b"anna lives in oslo .", b"caf\xe9", b"a\0b", b"where does anna live ?", b"q"]
    done = call("chat", "-m", "9", "-q", input=b"\n".join(lines))
    assert done.exit_code == 0
    assert "standard input:2 is not UTF-8 text" in done.stderr
    assert "standard input:3 is not text" in done.stderr
    assert "anna lives in oslo." in done.stdout


def test_lines_of_other_systems_are_lines(tmp_path: Path) -> None:
    tokens = []
    for ending in (b"\n", b"\r\n", b"\r"):
        path = tmp_path / "notes.txt"
        path.write_bytes(b"anna lives in oslo .\n\nben is\na doctor .".replace(b"\n", ending))
        done = remember(path)
        assert done.exit_code == 0, done.output
        tokens.append(done.stderr.partition(f"{path}: ")[2].partition(" tokens")[0])
    assert len(set(tokens)) == 1 and tokens[0]


@pytest.mark.skipif(sys.platform == "darwin", reason="names of files are UTF-8 on macOS")
def test_what_cannot_be_written_is_said_before_an_answer_is_given(tmp_path: Path) -> None:
    taken = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.mkdir(taken)
    for name, flag in [
        (f"{taken}.safetensors", "--memory"),
        (f"{taken}/m.safetensors", "--memory"),
        (f"{taken}/missing.txt", "--remember"),
    ]:
        done = CliRunner().invoke(app, ["generate", "-p", "hi", "-m", "1", flag, name])
        assert (done.exit_code, done.stdout) == (2, "")
        assert f"{flag} holds the byte 0xe9, which is not UTF-8" in done.stderr
    done = CliRunner().invoke(app, ["eval", "recall", "--out", taken])
    assert (done.exit_code, done.stdout) == (2, "")
    assert os.listdir(taken) == []


def test_words_that_a_model_cannot_read_are_named(tmp_path: Path) -> None:
    told = tmp_path / "told.txt"
    told.write_text("carl lives in paris .")
    done = CliRunner().invoke(
        app, ["generate", "-p", "where does xaver: live ?", "-m", "1", "--remember", str(told)]
    )
    assert done.exit_code == 0, done.stderr
    assert "The model has no word for: carl." in done.stderr
    assert "The model has no word for: xaver." in done.stderr
    known = CliRunner().invoke(app, ["generate", "-p", "where does anna live ?", "-m", "1"])
    assert "no word for" not in known.stderr


def test_chat_and_memories_ask_name_them_too() -> None:
    said = "my sister lives in oslo .\nanna lives in oslo .\nq\n"
    done = CliRunner().invoke(app, ["chat", "--memory", "me"], input=said)
    assert done.stderr.count("The model has no word for: sister.") == 1, done.stderr
    assert done.stderr.count("no word for") == 1
    done = CliRunner().invoke(app, ["memories", "ask", "is it true:. sister ?"])
    assert "The model has no word for: true, sister." in done.stderr


def test_the_demo_says_how_to_speak_to_the_pair() -> None:
    done = CliRunner().invoke(app, ["demo", "--words"])
    assert re.search(r"NAME likes FOOD \. +what does NAME like \?", done.stdout)
    found = json.loads(CliRunner().invoke(app, ["demo", "--words", "--json"]).stdout)
    texts = [*(" ".join(listed) for listed in found["words"].values()), *found["small_talk"]]
    assert unknown_words(dm.load()[1], " ".join(texts)) == []
    page = (ROOT / "docs" / "daily.md").read_text(encoding="utf-8")
    for tell, ask in found["patterns"]:
        assert f"| `{tell}` | `{ask}` |" in page
