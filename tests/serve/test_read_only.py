"""Reading leaves a memory as it is: what contradicts that is refused, and none begins by it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ANSWER, CHAT, FACT, HELLO, QUESTION, UNKNOWN, Client, builtin_pair, memory_files

from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

OTHER = "ben is a doctor ."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memories")


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[Client]:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0, memory_dir=folder)) as server:
        yield Client(server.url)


@pytest.mark.parametrize(
    "fields, headers",
    [
        ({"memory": {"reset": True}}, {}),
        ({"memory": {"remember": OTHER}}, {}),
        ({"memory": {"remember": [OTHER], "reset": True}}, {}),
        ({"memory": {"remember": [OTHER], "context": "drop"}}, {}),
        ({"attention_state": OTHER}, {}),
        ({"delta_attention_state": [{"text": OTHER}]}, {}),
        ({}, {"X-Delta-Attention-State": OTHER}),
    ],
    ids=["reset", "remember", "both", "remember, drop", "snippets", "objects", "header"],
)
def test_a_contradiction_is_refused_and_the_memory_is_as_it_was(
    client: Client, folder: Path, fields: dict, headers: dict
) -> None:
    client.chat(FACT, "kept", memory={"reset": True})
    before = {file: file.read_bytes() for file in memory_files(folder)}
    memory = {"session": "kept", "read_only": True} | fields.get("memory", {})
    reply = client.request("POST", CHAT, HELLO | fields | {"memory": memory}, headers)
    assert reply.status == 400 and reply.code == "invalid_value"
    assert reply.json["error"]["param"] in ("memory.reset", "memory.remember")
    assert {file: file.read_bytes() for file in memory_files(folder)} == before
    assert ANSWER in client.chat(QUESTION, "kept", memory={"context": "drop"}).text


@pytest.mark.parametrize("context", ["keep", "drop"])
@pytest.mark.parametrize("keep_partial", [False, True])
def test_a_memory_that_is_only_read_has_the_same_states_afterwards(
    client: Client, folder: Path, context: str, keep_partial: bool
) -> None:
    client.chat(FACT, "read", memory={"reset": True})
    (file,) = (f for f in memory_files(folder) if f.stem == client.memory("GET", "read").json["id"])
    before = read_memory(file)
    how = {"read_only": True, "context": context, "keep_partial": keep_partial}
    reply = client.chat(QUESTION, "read", memory=how)
    assert ANSWER in reply.text and reply.memory["tokens_written"] == 0
    after = read_memory(file)
    assert after.tokens_written == before.tokens_written
    assert all((after.states[i] == state).all() for i, state in before.states.items())


def test_reading_a_memory_that_is_not_there_is_answered_and_begins_none(
    client: Client, folder: Path
) -> None:
    files = memory_files(folder)
    for _ in range(2):
        reply = client.chat(QUESTION, "typo", memory={"read_only": True})
        assert reply.status == 200 and UNKNOWN in reply.text
        assert reply.memory["tokens_written"] == 0 and reply.memory["turns"] == 1
    assert client.memory("GET", "typo").code == "memory_not_found"
    assert client.memory("DELETE", "typo").code == "memory_not_found"
    listed = client.request("GET", "/v1/memories").json["data"]
    assert "typo" not in [memory["session"] for memory in listed]
    assert memory_files(folder) == files
