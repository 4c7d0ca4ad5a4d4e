"""Files are written whole or not at all, to where they are, and looked at before they are read."""

import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save_file

from deltamem_mlx.files import (
    FileChanged,
    FolderInUse,
    Witness,
    WriteError,
    checked_file,
    expanded,
    locked_folder,
    read_json,
    write_atomically,
    write_text,
)
from deltamem_mlx.problems import shortened


def test_a_link_is_written_through(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "me.txt", tmp_path / "link.txt"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"
    assert [p.name for p in real.parent.iterdir()] == ["me.txt"]


def test_a_link_to_nothing_yet_makes_what_it_points_at(tmp_path: Path) -> None:
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "later" / "me.txt")
    write_text(link, "new")
    assert link.is_symlink()
    assert (tmp_path / "later" / "me.txt").read_text() == "new"


@pytest.mark.parametrize("mode", [0o664, 0o640, 0o600, 0o755])
def test_permissions_of_a_file_that_is_there_stay(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "me.txt"
    file.write_text("old")
    file.chmod(mode)
    write_text(file, "new", mode=0o600)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert file.read_text() == "new"


def test_a_new_file_has_the_mode_that_is_asked_for(tmp_path: Path) -> None:
    write_text(tmp_path / "me.txt", "new", mode=0o600)
    assert stat.S_IMODE((tmp_path / "me.txt").stat().st_mode) == 0o600


@pytest.mark.parametrize("through_link", [False, True])
def test_a_write_protected_file_is_refused(tmp_path: Path, through_link: bool) -> None:
    file = tmp_path / "me.txt"
    file.write_text("old")
    file.chmod(0o444)
    name = file
    if through_link:
        name = tmp_path / "link.txt"
        name.symlink_to(file)
    with pytest.raises(WriteError, match=r"me.txt is write-protected: nothing was written"):
        write_text(name, "new")
    assert file.read_text() == "old"


def test_folders_and_pipes_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(WriteError, match="folder is a folder"):
        write_text(tmp_path / "folder", "new")
    with pytest.raises(WriteError, match="pipe is no regular file"):
        write_text(tmp_path / "pipe", "new")


def test_the_home_folder_is_meant_by_a_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_text("~/a/me.txt", "new")
    assert (tmp_path / "a" / "me.txt").read_text() == "new"
    assert expanded("~nobody-of-that-name/x") == Path("~nobody-of-that-name/x")


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda p: p.write_text("x" * (1 << 20)),
    "mlx": lambda p: mx.save_safetensors(str(p), {"a": mx.zeros((1 << 18,))}),
    "numpy": lambda p: np.savez(p, a=np.zeros(1 << 17)),
    "safetensors": lambda p: save_file({"a": np.zeros(1 << 17)}, p),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_that_names_the_file(tmp_path: Path, writer: str) -> None:
    """No file of the process may grow beyond 64 kB: what a full disk does to a write."""
    suffix = ".npz" if writer == "numpy" else ".safetensors"
    file = tmp_path / f"me{suffix}"
    file.write_text("old")
    code = f"""
import resource, signal, sys
sys.path[:0] = {[str(ROOT), str(Path(__file__).parent), str(ROOT / "tests")]!r}
from test_files import WRITERS, write_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
try:
    write_atomically({str(file)!r}, WRITERS[{writer!r}])
except OSError as error:
    print(type(error).__name__, error)
"""
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    said = done.stdout.strip()
    assert said.startswith(f"WriteError {file} could not be written: "), done.stderr
    assert said.endswith("What was there before is unchanged.")
    assert "\n" not in said
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_errors_of_the_data_are_not_called_errors_of_the_disk(tmp_path: Path) -> None:
    def unfit(_: Path) -> None:
        raise ValueError("not finite")

    with pytest.raises(ValueError, match="not finite"):
        write_atomically(tmp_path / "me.txt", unfit)
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_removed_at_the_next_write(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine = tmp_path / f".me-{dead.pid}-0123abcd.txt"
    others = [
        tmp_path / f".me-{os.getpid()}-0123abcd.txt",  # of a process that runs
        tmp_path / f".you-{dead.pid}-0123abcd.txt",
        tmp_path / f".me-{dead.pid}-0123abcd.safetensors",
        tmp_path / ".me-notes.txt",
    ]
    for file in (mine, *others):
        file.write_text("half")
    write_text(tmp_path / "me.txt", "new")
    assert not mine.exists()
    assert all(file.exists() for file in others)


def test_a_name_as_long_as_they_may_be(tmp_path: Path) -> None:
    file = tmp_path / ("ö" * 125 + ".txt")
    write_text(file, "new")
    write_text(file, "newer")
    assert file.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [file]


# --- nobody's newer file is replaced


def test_a_file_that_another_program_saved_is_not_replaced(tmp_path: Path) -> None:
    file, witness = tmp_path / "me.txt", Witness()
    file.write_text("read")
    witness.note(file)
    write_text(file, "mine", witness=witness)
    write_text(file, "mine again", witness=witness)
    write_text(file, "theirs")
    with pytest.raises(FileChanged, match="has been saved by another program since it was read"):
        write_text(file, "lost", witness=witness)
    assert file.read_text() == "theirs"
    witness.note(file)
    write_text(file, "known now", witness=witness)
    file.unlink()
    with pytest.raises(FileChanged, match="was removed by another program"):
        write_text(file, "back from the dead", witness=witness)
    assert not file.exists()


def test_a_file_that_was_never_looked_at_is_replaced_if_it_is_older(tmp_path: Path) -> None:
    file, other, witness = tmp_path / "me.txt", tmp_path / "other.txt", Witness()
    for path, seconds in ((file, -60), (other, 60)):
        path.write_text("there")
        at = time.time_ns() + seconds * 10**9
        os.utime(path, ns=(at, at))
    write_text(file, "mine", witness=witness)
    with pytest.raises(FileChanged, match=r"other.txt has been saved by another program"):
        write_text(other, "mine", witness=witness)


def test_one_file_by_two_names_is_one_file(tmp_path: Path) -> None:
    file, link, witness = tmp_path / "me.txt", tmp_path / "link.txt", Witness()
    file.write_text("read")
    link.symlink_to(file)
    witness.note(file)
    write_text(file, "theirs")
    with pytest.raises(FileChanged):
        write_text(link, "mine", witness=witness)


COUNTING = """
import sys
from deltamem_mlx.files import FileChanged, Witness, read_json, write_text
file, mine = sys.argv[1:]
for n in range(200):
    while True:
        witness = Witness()
        witness.note(file)
        try:
            values = read_json(file)
            write_text(file, __import__("json").dumps(values | {mine: n}), witness=witness)
            break
        except FileChanged:
            pass
"""


def test_of_two_processes_that_write_one_file_nothing_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "me.json"
    file.write_text("{}")
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    both = [
        subprocess.Popen([sys.executable, "-c", COUNTING, str(file), name], env=env)
        for name in ("one", "other")
    ]
    assert [process.wait() for process in both] == [0, 0]
    assert json.loads(file.read_text()) == {"one": 199, "other": 199}


# --- a folder for one process at a time

HOLDING = """
import sys, time
from deltamem_mlx.files import locked_folder
with locked_folder(sys.argv[1], "another run"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_one_processs_until_that_ends_or_is_killed(tmp_path: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDING, str(tmp_path / "run")],
        env=env,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    said = rf"run is in use by another run \(process {other.pid}\). Wait until"
    with pytest.raises(FolderInUse, match=said), locked_folder(tmp_path / "run", "another run"):
        pass
    other.kill()
    other.wait()
    with locked_folder(tmp_path / "run", "another run"):
        pass


# --- looked at before they are read


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: os.mkfifo(p), "is a pipe or device; expected a regular file"),
        (lambda p: p.mkdir(), "is a folder; expected a regular file"),
        (lambda p: p.symlink_to("/dev/zero"), "is a pipe or device"),
        (lambda p: os.truncate(os.open(p, os.O_CREAT | os.O_WRONLY), 1 << 40), "at most 1,000"),
        (lambda p: p.symlink_to(p), "is no path of a file"),
    ],
    ids=["pipe", "folder", "device", "sparse", "loop"],
)
def test_what_is_no_file_of_that_size_is_not_opened(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "x")
    with pytest.raises(ValueError, match=said):
        checked_file(tmp_path / "x", 1000)


def test_a_link_to_nothing_is_said_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "x").symlink_to(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="a link that points nowhere"):
        checked_file(tmp_path / "x")
    with pytest.raises(ValueError, match="no path"):
        checked_file("a\0b")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"[" * 100_000, "too deeply nested"),
        (b'{"a": ' + b"1" * 5000 + b"}", "a number too long"),
        (b'{"a": 1', "is not valid JSON"),
        (b"[1]", "holds a list, expected a JSON object"),
        (b'{"a":\n"\xff"}', "x.json:2 is not UTF-8 text"),
        (b'{"a": "\0"}', "null character"),
        (b"", "is not valid JSON"),
    ],
    ids=["nested", "digits", "cut", "list", "latin-1", "null", "empty"],
)
def test_what_is_no_json_object_is_refused_in_a_line(
    tmp_path: Path, data: bytes, said: str
) -> None:
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        read_json(tmp_path / "x.json")
    assert str(tmp_path / "x.json") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, "a\nb", 10**5000, list(range(10_000)), b"\xff" * 500, {"a": ["b" * 900]}],
    ids=["long", "lines", "number", "list", "bytes", "nested"],
)
def test_a_bad_value_is_shown_in_a_line_at_most(value: object) -> None:
    shown = shortened(value)
    assert 0 < len(shown) <= 80
    assert "\n" not in shown
