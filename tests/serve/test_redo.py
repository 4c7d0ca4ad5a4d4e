"""`POST /v1/memories/{key}/redo` puts back what was taken back, until the memory is told more."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import ANSWER, FACT, QUESTION, Client, Pair, memory_files

from deltamem_mlx.memory.file import undone_file
from deltamem_mlx.memory.shelf import id_of
from deltamem_mlx.memory.undo import redo_memory_file, undo_memory_file
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

OTHER = "ben is a doctor ."


@contextmanager
def served(pair: Pair, folder: Path) -> Iterator[Client]:
    with Server(*pair, "builtin", ServeSettings(port=0, memory_dir=folder)) as serving:
        yield Client(serving.url)


def file_of(client: Client, key: str) -> bytes:
    reply = client.memory("GET", key, "/export")
    assert reply.status == 200
    return reply.body


def test_what_was_taken_back_is_put_back_with_its_context(client: Client) -> None:
    for text in (FACT, OTHER, FACT):
        client.chat(text, "redone")
    whole, numbers = file_of(client, "redone"), client.memory("GET", "redone").json
    assert numbers["redo_turns"] == 0
    client.memory("POST", "redone", "/undo")
    assert client.memory("POST", "redone", "/undo", {"turns": 1}).json["redo_turns"] == 2
    assert client.memory("POST", "redone", "/redo").json == numbers
    assert file_of(client, "redone") == whole
    assert client.memory("POST", "redone", "/redo").code == "nothing_undone"
    answer = client.chat(QUESTION, "redone")
    assert ANSWER in answer.text
    assert answer.memory["context_tokens"] > numbers["context_tokens"]


def test_a_memory_that_was_begun_by_what_was_taken_back_is_there_again(client: Client) -> None:
    client.chat(FACT, "begun")
    whole = file_of(client, "begun")
    gone = client.memory("POST", "begun", "/undo").json
    assert (gone["tokens_written"], gone["redo_turns"]) == (0, 1)
    assert client.memory("GET", "begun").status == 404
    assert "begun" not in [m["session"] for m in client.request("GET", "/v1/memories").json["data"]]
    assert client.memory("POST", "begun", "/redo").status == 200
    assert file_of(client, "begun") == whole


@pytest.mark.parametrize("then", ["told", "replaced", "deleted", "all deleted"])
def test_it_is_kept_until_the_memory_is_told_more(client: Client, then: str) -> None:
    client.chat(FACT, then)
    whole = file_of(client, then)
    client.memory("POST", then, "/undo")
    if then == "told":
        client.chat(OTHER, then)
    elif then == "replaced":
        client.memory("PUT", then, body=whole)
    elif then == "deleted":
        assert client.memory("DELETE", then).status == 200
    else:
        client.request("DELETE", "/v1/memories")
    assert client.memory("POST", then, "/redo").code in ("nothing_undone", "memory_not_found")


def test_a_body_says_nothing_more(client: Client) -> None:
    client.chat(FACT, "bodies")
    client.memory("POST", "bodies", "/undo")
    for bad in ({"turns": 1}, [1], "x"):
        assert client.memory("POST", "bodies", "/redo", bad).status == 400
    assert client.memory("POST", "bodies", "/redo", {}).status == 200
    assert client.memory("POST", "nobody", "/redo").code == "memory_not_found"
    assert client.memory("GET", "bodies", "/redo").status == 405


def test_it_outlives_the_server_and_commands_put_it_back(pair: Pair, tmp_path: Path) -> None:
    path = tmp_path / f"{id_of('kept')}.safetensors"
    with served(pair, tmp_path) as client:
        client.chat(FACT, "kept")
        client.chat(OTHER, "kept")
        whole = path.read_bytes()
        client.memory("POST", "kept", "/undo")
    assert redo_memory_file(path).tokens_written and path.read_bytes() == whole
    undo_memory_file(path, redo=True)
    with served(pair, tmp_path) as client:
        assert client.memory("GET", "kept").json["redo_turns"] == 1
        assert client.memory("POST", "kept", "/rename", {"to": "other"}).json["redo_turns"] == 1
        assert not undone_file(path).exists()
        client.memory("POST", "other", "/redo")
        (only,) = memory_files(tmp_path)
        assert only.read_bytes() == whole and not undone_file(only).exists()
        client.memory("POST", "other", "/undo")
        client.memory("DELETE", "other")
    assert [each.name for each in tmp_path.iterdir()] == [".lock"]
