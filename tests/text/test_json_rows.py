"""The one reader of .jsonl files, and what it says of lines that hold no JSON."""

import gzip
import json
import os
from pathlib import Path

import pytest

from deltamem_mlx.files import json_lines, read_text
from deltamem_mlx.problems import Problem
from deltamem_mlx.text.json_rows import json_rows


def test_only_a_line_feed_ends_a_line(tmp_path: Path) -> None:
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\x1cb", "a\rb"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    path = tmp_path / "a.jsonl"
    path.write_bytes(("\ufeff" + "\r\n\n".join(lines)).encode())
    found = list(json_lines(path))
    assert [line.value for line in found] == [{"text": text} for text in texts]
    assert [line.number for line in found] == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": ', "not valid JSON: Expecting value at column 7"),
        (b"[" * 100_000, "too deeply nested"),
        (b"1" * 5000, "a number too long"),
        (b'"caf\xe9"', "not UTF-8 text: invalid continuation byte, byte 5"),
        (b'"\xed\xa0\xbd"', "not UTF-8 text"),
        (b'"a\0b"', "not text: it holds a null byte"),
        ('"a"'.encode("utf-16-le"), "not text"),
    ],
)
def test_a_line_that_holds_no_json_is_named_and_the_next_is_read(
    line: bytes, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n" + line + b"\n2")
    first, wrong, last = json_lines(path)
    assert (first.value, last.value, last.number) == (1, 2, 3)
    assert said in wrong.wrong
    assert wrong.value is None
    assert "\n" not in wrong.wrong and len(wrong.wrong) < 100
    (_, _), (where, row), _ = json_rows(path)
    assert where == f"{path}:2"
    assert isinstance(row, Problem) and said in row.what


def test_a_compressed_file_is_read_and_one_that_is_cut_off_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"a": 1}\n{"a": 2}\n'))
    assert [line.value for line in json_lines(path)] == [{"a": 1}, {"a": 2}]
    for data in (path.read_bytes()[:-5], b"not gzip", path.read_bytes()[:12] + b"xxxxxxxxxx"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"a\.jsonl\.gz is no whole \.gz file"):
            list(json_lines(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.Json", "a.JSON"])
def test_names_may_be_written_in_capitals(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"a": 1}')
    assert [row for _, row in json_rows(tmp_path / name)] == [{"a": 1}]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\nb".encode("utf-16"), r"a\.txt:1 is not UTF-8 text but UTF-16"),
        ("a\nb".encode("utf-16-le"), r"a\.txt:1 is not text: it holds a null character"),
        ("a\nb".encode("utf-16-be"), r"a\.txt:1 is not text"),
        ("a\nb".encode("utf-32"), r"a\.txt:1 is not UTF-8 text"),
        (b"PK\3\4\x14\0word/document.xml", r"a\.txt:1 is not text: it is an archive or document"),
        (b"%PDF-1.4\n1 0 obj", r"a\.txt:1 is not text: it is a PDF"),
        (b"{\\rtf1 anna}", r"a\.txt:1 is not text: it is an RTF document"),
        (b"\x89PNG\r\n\x1a\n", r"a\.txt:1 is not UTF-8 text"),
        (b"anna\nben\ncaf\xe9", r"a\.txt:3 is not UTF-8 text"),
        (b"anna\nben\0", r"a\.txt:2 is not text"),
        (b"a\n" * 5000 + b"\0", r"a\.txt:5001 is not text"),
        (b"a\n" * 5000 + b"\xff", r"a\.txt:5001 is not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ValueError, match=said):
        read_text(tmp_path / "a.txt")


def test_what_a_shells_command_writes_is_read(tmp_path: Path) -> None:
    ours, theirs = os.pipe()
    os.write(theirs, b"anna\nben")
    os.close(theirs)
    assert read_text(f"/dev/fd/{ours}") == "anna\nben"
    os.close(ours)
    os.mkfifo(tmp_path / "named")
    with pytest.raises(ValueError, match="a pipe or device"):
        read_text(tmp_path / "named")
    with pytest.raises(ValueError, match="a pipe or device"):
        read_text("/dev/zero")


def test_a_file_of_zeros_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ValueError, match="null character"):
        read_text(tmp_path / "a.txt")
