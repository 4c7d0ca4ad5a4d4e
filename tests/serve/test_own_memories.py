"""`serve --named`: the memories of `--memory NAME`; what is said of files that are another's."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import RunCli
from serving import ANSWER, FACT, QUESTION, Client, Pair, memory_files

import deltamem_mlx as dm
from deltamem_mlx.cli import serve
from deltamem_mlx.files.places import memories_folder
from deltamem_mlx.serve.memories.folder import NamedFolder
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

Started = Callable[..., tuple[ServeSettings, str]]


@pytest.fixture
def saved(pair: Pair, tmp_path: Path) -> Path:
    """A memory file that knows where anna lives."""
    session = dm.MemorySession(*pair)
    session.remember(FACT)
    session.save(tmp_path / "work.safetensors")
    return tmp_path / "work.safetensors"


@pytest.fixture
def started(call_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> Started:
    """What `serve` with these flags would run with, and what it says first."""
    found: list[ServeSettings] = []
    monkeypatch.setattr(serve, "_load", lambda *_, **__: (None,))
    monkeypatch.setattr(serve, "serve_until_ended", lambda _, settings, __: found.append(settings))

    def start(*flags: str | Path) -> tuple[ServeSettings, str]:
        done = call_cli("serve", *flags)
        assert done.returncode == 0, done.stderr
        return found[-1], done.stderr

    return start


def test_a_response_of_its_own_is_no_slip(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To compare with all names that there are would be for nothing."""
    compared: list[str] = []
    monkeypatch.setattr(NamedFolder, "meant", lambda _, key: compared.append(key) or "")
    settings = ServeSettings(port=0, memory_dir=tmp_path, named=True)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        said = {"input": FACT, "max_output_tokens": 1}
        first = client.request("POST", "/v1/responses", said).json["id"]
        client.request("POST", "/v1/responses", said | {"previous_response_id": first})
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2 and not compared
        client.request("POST", "/v1/responses", said | {"conversation": "named"})
        assert compared == ["named"]


def test_a_slip_in_a_name_is_told_what_it_is_near(pair: Pair, saved: Path) -> None:
    folder = saved.parent
    settings = ServeSettings(port=0, memory_dir=folder, named=True)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        assert client.memory("GET", "wokr").status == 404
        known = client.chat(QUESTION, "work").memory
        assert known["new"] is False and "did_you_mean" not in known
        reading = client.chat(QUESTION, "wrok", memory={"read_only": True}).memory
        assert reading["new"] is True and reading["did_you_mean"] == "work"
        slip = client.chat(QUESTION, "wrok").memory
        assert slip["new"] is True and slip["did_you_mean"] == "work"
        assert client.chat(QUESTION, "wrok").memory["new"] is False
        for name in ("work2", "garden"):
            other = client.chat(QUESTION, name).memory
            assert other["new"] is True and "did_you_mean" not in other
        anew = client.chat(QUESTION, "garden", memory={"reset": True}).memory
        assert anew["new"] is True
        # They were there: their names are no slips.
        (folder / "wrko.safetensors").write_bytes(saved.read_bytes())
        anew = client.chat(QUESTION, "wrko", memory={"reset": True}).memory
        assert anew["new"] is True and "did_you_mean" not in anew
        client.memory("DELETE", "wrko")
        anew = client.chat(QUESTION, "wrok", memory={"reset": True}).memory
        assert anew["new"] is True and "did_you_mean" not in anew
        listed = client.request("GET", "/v1/memories").json["data"]
    with Server(*pair, "builtin", settings) as serving:
        again = Client(serving.url).request("GET", "/v1/memories").json["data"]
    assert {tuple(sorted(one)) for one in [*listed, *again]} == {tuple(sorted(listed[0]))}
    assert {one["session"] for one in again} == {"work", "wrok", "work2", "garden"}
    assert {one["tokens_written"] for one in again} == {None}
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        client.chat(QUESTION, "work")
        assert "did_you_mean" not in client.chat(QUESTION, "wrok").memory


def test_named_memories_are_those_of_the_command_line(
    pair: Pair, saved: Path, started: Started, call_cli: RunCli
) -> None:
    call_cli("memories", "import", saved)
    settings, said = started("--named", "--port", "0")
    assert (settings.memory_dir, said) == (memories_folder(), "")
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        (there,) = client.request("GET", "/v1/memories").json["data"]
        assert there["session"] == "work"
        assert ANSWER in client.chat(QUESTION, "work").text
    assert [path.name for path in memories_folder().glob("*.safetensors")] == ["work.safetensors"]


def test_the_own_folder_is_not_served_by_hashes(call_cli: RunCli) -> None:
    refused = call_cli("serve", "--memory-dir", memories_folder())
    assert refused.returncode == 2
    assert "memories go by their names. Add --named" in refused.stderr


def test_what_is_imported_into_a_servers_folder_is_found_by_its_key(
    pair: Pair, saved: Path, tmp_path: Path, call_cli: RunCli
) -> None:
    """In one in which nothing was said yet, and beside a file that goes by a name."""
    folder = tmp_path / "memories"
    settings = ServeSettings(port=0, memory_dir=folder)
    with Server(*pair, "builtin", settings):
        pass
    done = call_cli("memories", "import", saved, "work", "--folder", folder)
    assert "is the memory of the key work now" in done.stdout
    saved.rename(folder / "stray.safetensors")
    call_cli("memories", "copy", "work", "home", "--folder", folder)
    assert len(memory_files(folder)) == 2
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2
        for key in ("work", "home"):
            assert ANSWER in client.chat(QUESTION, key).text


def test_files_that_are_not_the_servers_are_named_at_its_start(
    saved: Path, tmp_path: Path, started: Started
) -> None:
    _, said = started("--memory-dir", tmp_path)
    assert "are not this server's" in said and ": work. --named serves them" in said
    (tmp_path / f"{'0f' * 32}.safetensors").write_bytes(saved.read_bytes())
    saved.unlink()
    assert started("--memory-dir", tmp_path)[1] == ""
    assert "keeps by their keys' hashes" in started("--memory-dir", tmp_path, "--named")[1]
    assert "gone when this server ends" in started()[1]


def test_a_misspelt_field_and_a_bare_name_are_told_what_they_are_near(
    pair: Pair, saved: Path, call_cli: RunCli
) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        body = {"messages": [{"role": "user", "content": FACT}], "memory": {"sesion": "me"}}
        refused = Client(serving.url).request("POST", "/v1/chat/completions", body)
    said = refused.json["error"]["message"]
    assert said.endswith("; there is no 'sesion', did you mean session?")
    call_cli("memories", "import", saved)
    with pytest.raises(FileNotFoundError, match=r"The memory of that name is '.*work.safetensors'"):
        dm.MemorySession.restore("work", *pair)


def test_a_file_is_no_folder_and_that_is_said_before_a_model_is_loaded(
    call_cli: RunCli, saved: Path
) -> None:
    refused = call_cli("serve", "--model", "none", "--adapter", "none", "--memory-dir", saved)
    assert refused.returncode == 2
    assert f"--memory-dir {saved}: is a file; expected a folder." in refused.stderr
