"""The server's memories across servers: what is on disk, what leaves RAM, what cannot be saved."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import (
    ANSWER,
    FACT,
    QUESTION,
    UNKNOWN,
    Client,
    Pair,
    assistant,
    memory_files,
    user,
)

import deltamem_mlx as dm
from deltamem_mlx.files import FolderInUse
from deltamem_mlx.memory.file import read_memory, write_memory
from deltamem_mlx.serve.errors import ApiError
from deltamem_mlx.serve.memories.folder import MemoryFolder
from deltamem_mlx.serve.memories.memory import HeldMemory
from deltamem_mlx.serve.memories.outcome import TurnOutcome
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


def test_a_new_server_goes_on_from_the_files(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    said = [user(FACT)]
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        said.append(assistant(client.chat(said, "kept").text))
        client.chat(FACT, "other")
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2
        reply = client.chat([*said, user(QUESTION)], "kept")
        assert ANSWER in reply.text
        assert reply.memory["messages_known"] == 2 and reply.memory["turns"] == 2
        assert client.request("DELETE", "/v1/memories").json["deleted"] == 2
        assert UNKNOWN in client.chat(QUESTION, "kept").text
    assert len(memory_files(tmp_path)) == 1


def test_what_an_older_server_noted_in_a_file_is_known(pair: Pair, tmp_path: Path) -> None:
    """Until version 0.1.0 the fingerprints stood in the file's note."""
    settings, said = ServeSettings(port=0, memory_dir=tmp_path), []
    with Server(*pair, "builtin", settings) as serving:
        for text in (FACT, "ben is a doctor ."):
            said.append(user(text))
            said.append(assistant(Client(serving.url).chat(said, "old").text))
    (file,) = memory_files(tmp_path)
    now = read_memory(file)
    note = json.dumps({"format": "deltamem_mlx.serve", **now.told.as_json()})
    write_memory(file, replace(now, told=None, history=(), note=note))
    assert read_memory(file).told == now.told and not read_memory(file).note
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        edit = client.chat([*said[:2], user(QUESTION)], "old")
        assert edit.code == "history_conflict" and "over no turn" in edit.body.decode()
        reply = client.chat([*said, user(QUESTION)], "old")
        assert reply.memory["messages_known"] == 4 and ANSWER in reply.text
        again = client.chat([*said, user(QUESTION)], "old")
        assert again.memory["turns_taken_back"] == 1 and again.text == reply.text


def test_memories_leave_ram_and_come_back(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, memory_bytes=20_000)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        for i in range(4):
            client.chat(FACT, f"m{i}")
        totals = serving.memories.totals()
        assert totals["bytes"] < 80_000 and totals["memories"] < 4
        for i in range(4):
            assert ANSWER in client.chat(QUESTION, f"m{i}").text


def test_a_damaged_file_is_refused_until_it_is_reset(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*pair, "builtin", settings) as serving:
        Client(serving.url).chat(FACT, "hurt")
    (file,) = memory_files(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        refused = client.chat(QUESTION, "hurt")
        assert refused.status == 409 and refused.code == "memory_unusable"
        assert str(tmp_path) not in refused.body.decode()
        assert client.chat(QUESTION, "hurt", memory={"reset": True}).status == 200


def test_a_memory_that_cannot_be_saved_is_not_kept(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem_mlx.serve.memories import folder

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat(FACT, "full")
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_memory", full)
            assert client.chat(QUESTION, "full").code == "not_saved"
        assert client.memory("GET", "full").json["turns"] == 1
        assert client.chat(QUESTION, "full").memory["turns"] == 2


@pytest.fixture
def kept(pair: Pair, tmp_path: Path) -> Iterator[Client]:
    """A client of a server whose memories are in ``tmp_path``."""
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path)) as serving:
        yield Client(serving.url)


def file_of(folder: Path, key: str) -> Path:
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def told(path: Path, pair: Pair, text: str) -> None:
    """Another program writes into a memory file."""
    cache = dm.load_memory(path, pair[0])
    dm.MemorySession(*pair, prompt_cache=cache).ask(text, max_tokens=4)
    dm.save_memory(path, cache, pair[0])


def test_a_second_server_is_refused_a_folder_in_use(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*pair, "builtin", settings), pytest.raises(FolderInUse, match="a server"):
        Server(*pair, "builtin", settings)
    with Server(*pair, "builtin", settings) as serving:
        assert Client(serving.url).chat(FACT, "after").status == 200


def test_what_another_program_wrote_is_gone_on_from(
    kept: Client, pair: Pair, tmp_path: Path
) -> None:
    kept.chat(FACT, "shared")
    told(file_of(tmp_path, "shared"), pair, "ben is a doctor .")
    written = kept.memory("GET", "shared").json["tokens_written"]
    reply = kept.chat("what is the job of ben ?", "shared", memory={"context": "drop"})
    assert "doctor" in reply.text
    assert reply.memory["total_tokens_written"] == written + reply.memory["tokens_written"]
    assert ANSWER in kept.chat(QUESTION, "shared", memory={"context": "drop"}).text


def test_a_reset_that_fails_leaves_what_another_program_wrote(
    kept: Client, pair: Pair, tmp_path: Path
) -> None:
    kept.chat(FACT, "shared")
    file = file_of(tmp_path, "shared")
    told(file, pair, "ben is a doctor .")
    theirs, (written,) = file.read_bytes(), read_memory(file).tokens_written
    failed = kept.chat([user("hi"), assistant("ok")], "shared", memory={"reset": True})
    assert failed.code == "nothing_new" and file.read_bytes() == theirs
    assert kept.memory("GET", "shared").json["tokens_written"] == written
    reply = kept.chat("what is the job of ben ?", "shared", memory={"context": "drop"})
    assert reply.memory["total_tokens_written"] == written + reply.memory["tokens_written"]
    assert "doctor" in reply.text


def test_a_file_that_cannot_be_put_leaves_what_another_program_wrote(
    kept: Client, pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.chat(FACT, "shared")
    exported, file = kept.memory("GET", "shared", "/export").body, file_of(tmp_path, "shared")
    told(file, pair, "ben is a doctor .")
    (written,) = read_memory(file).tokens_written
    with monkeypatch.context() as patch:
        patch.setattr(MemoryFolder, "write", full)
        assert kept.memory("PUT", "shared", body=exported).code == "not_saved"
    assert kept.memory("GET", "shared").json["tokens_written"] == written


def full(*_: object) -> None:
    raise ApiError(500, "no room", code="not_saved")


def test_what_was_fed_is_known_after_another_program_has_gone_on(
    kept: Client, pair: Pair, tmp_path: Path
) -> None:
    said = [user(FACT)]
    said.append(assistant(kept.chat(said, "shared").text))
    told(file_of(tmp_path, "shared"), pair, "ben is a doctor .")
    said.append(user(QUESTION))
    assert kept.chat(said, "shared").memory["messages_known"] == 2


def test_what_another_program_wrote_during_a_turn_is_not_lost(pair: Pair, tmp_path: Path) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path)) as serving:
        client = Client(serving.url)
        client.chat(FACT, "shared")
        with serving.memories.hold("shared") as memory:
            told(file_of(tmp_path, "shared"), pair, "ben is a doctor .")
            with pytest.raises(ApiError, match="Another program") as refused:
                serving.memories.commit(memory, outcome_of(memory.contents))
        assert (refused.value.status, refused.value.code) == (409, "memory_changed")
        asked = client.chat("what is the job of ben ?", "shared", memory={"context": "drop"})
        assert "doctor" in asked.text


def outcome_of(contents: HeldMemory) -> TurnOutcome:
    """A turn that came to what there was before it."""
    return TurnOutcome(contents.talk, contents.saved, 0, 0, 0, False, False)


def test_a_memory_whose_file_was_removed_is_gone(kept: Client, tmp_path: Path) -> None:
    for key in ("chatted", "looked"):
        kept.chat(FACT, key)
        file_of(tmp_path, key).unlink()
    assert kept.memory("GET", "looked").code == "memory_not_found"
    assert kept.memory("GET", "looked", "/export").code == "memory_not_found"
    assert kept.request("GET", "/v1/memories").json["data"] == []
    assert kept.memory("DELETE", "looked").code == "memory_not_found"
    reply = kept.chat(QUESTION, "chatted")
    assert UNKNOWN in reply.text and reply.memory["turns"] == 1


def test_a_file_that_was_damaged_meanwhile_is_not_replaced(kept: Client, tmp_path: Path) -> None:
    kept.chat(FACT, "hurt")
    file_of(tmp_path, "hurt").write_bytes(b"not a memory")
    for _ in range(2):
        assert kept.chat(QUESTION, "hurt").code == "memory_unusable"
    assert file_of(tmp_path, "hurt").read_bytes() == b"not a memory"
    assert kept.chat(FACT, "hurt", memory={"reset": True}).status == 200


def test_only_the_servers_own_files_are_listed_or_deleted(pair: Pair, tmp_path: Path) -> None:
    digest = hashlib.sha256(b"killed").hexdigest()
    leftovers = [f".{digest}-{2**22 + 1}-0123abcd.safetensors"]
    strangers = [
        "model.safetensors",
        ".hidden.safetensors",
        f"{digest[:-1]}.safetensors",
        f"{digest.upper()}.safetensors",
        f"{digest}.safetensors.bak",
        f".{digest}.safetensors",
        f".{digest}-1-2.safetensors",
        f".other-{2**22 + 1}-0123abcd.safetensors",
        "notes.txt",
    ]
    for name in [*leftovers, *strangers]:
        (tmp_path / name).write_bytes(b"cut off")
    save_file({"weight": np.zeros(2)}, tmp_path / "adapters.safetensors")
    (tmp_path / f"{'0' * 64}.safetensors").mkdir()
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path)) as serving:
        client = Client(serving.url)
        assert client.request("GET", "/v1/memories").json["data"] == []
        client.chat(FACT, "mine")
        assert client.request("DELETE", "/v1/memories").json["deleted"] == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {*strangers, "adapters.safetensors", f"{'0' * 64}.safetensors", ".lock"}


def test_what_was_looked_at_is_not_changed_by_a_delete(pair: Pair, tmp_path: Path) -> None:
    """Fork and export go on with what they found."""
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=tmp_path)) as serving:
        Client(serving.url).chat(FACT, "brief")
        found = serving.memories.look("brief")
        serving.memories.delete("brief")
        assert found.saved is not None and found.stats()["turns"] == 1


def test_the_ram_of_a_memory_counts_what_it_remembers_of_messages(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        client.chat(FACT, "many", max_tokens=1)
        before = serving.memories.totals()["bytes"]
        said = [user(f"{i} .") if i % 2 else assistant("ok") for i in range(1, 80)]
        client.chat([*said[:-1], user("hi")], "other", max_tokens=1, memory={"context": "drop"})
        assert serving.memories.totals()["bytes"] - before > 2 * 80 * 16


@pytest.mark.parametrize("count", [2**31 - 1, 2**30 + 1])
def test_a_memory_that_counts_too_far_is_refused(kept: Client, tmp_path: Path, count: int) -> None:
    kept.chat(FACT, "counted")
    saved = read_memory(file_of(tmp_path, "counted"))
    forged = tmp_path / "forged.safetensors"
    write_memory(forged, replace(saved, tokens_written=[count]))
    reply = kept.memory("PUT", "forged", body=forged.read_bytes())
    assert reply.status == 400 and reply.code == "bad_memory_file"
    (turn,) = saved.history
    far = replace(saved, history=(replace(turn, tokens_written=(count,)),))
    write_memory(forged, far)
    reply = kept.memory("PUT", "forged", body=forged.read_bytes())
    assert reply.status == 400 and reply.code == "bad_memory_file"
    write_memory(file_of(tmp_path, "counted"), replace(saved, tokens_written=[count]))
    assert kept.chat(QUESTION, "counted").code == "memory_unusable"
    assert kept.chat(QUESTION, "another").status == 200


@pytest.mark.parametrize("folder", [True, False], ids=["on disk", "in RAM"])
def test_a_turn_in_which_states_run_over_is_undone(
    pair: Pair, tmp_path: Path, folder: bool
) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path / "m" if folder else None)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat(FACT, "large")
        file = tmp_path / "large.safetensors"
        file.write_bytes(client.memory("GET", "large", "/export").body)
        saved = read_memory(file)
        huge = {i: np.full_like(state, 3e38) for i, state in saved.states.items()}
        write_memory(file, replace(saved, states=huge))
        assert client.memory("PUT", "large", body=file.read_bytes()).status == 200
        before = client.memory("GET", "large").json
        reply = client.chat(QUESTION, "large")
        assert reply.status == 409 and reply.code == "memory_overflow"
        assert client.memory("GET", "large").json == before
        assert ANSWER in client.chat([user(FACT), assistant("ok"), user(QUESTION)]).text
        assert client.chat(FACT, "large", memory={"reset": True}).status == 200
