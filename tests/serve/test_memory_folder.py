"""The server's memories across servers: what is on disk, what leaves RAM, what cannot be saved."""

from pathlib import Path

import pytest
from serving import ANSWER, FACT, QUESTION, UNKNOWN, Client, Pair, assistant, builtin_pair, user

from deltamem_mlx.serve.server import Serving
from deltamem_mlx.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def pair() -> Pair:
    return builtin_pair()


def test_a_new_server_goes_on_from_the_files(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    said = [user(FACT)]
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        said.append(assistant(client.chat(said, "kept").text))
        client.chat(FACT, "other")
    (tmp_path / f".left-1-2{'.safetensors'}").write_bytes(b"cut off")
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2
        reply = client.chat([*said, user(QUESTION)], "kept")
        assert ANSWER in reply.text
        assert reply.memory["messages_known"] == 2 and reply.memory["turns"] == 2
        assert client.request("DELETE", "/v1/memories").json["deleted"] == 2
        assert UNKNOWN in client.chat(QUESTION, "kept", memory={"read_only": True}).text
    assert len(list(tmp_path.iterdir())) == 1


def test_memories_leave_ram_and_come_back(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, memory_bytes=20_000)
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        for i in range(4):
            client.chat(FACT, f"m{i}")
        totals = serving.memories.totals()
        assert totals["bytes"] < 80_000 and totals["memories"] < 4
        for i in range(4):
            assert ANSWER in client.chat(QUESTION, f"m{i}").text


def test_a_damaged_file_is_refused_until_it_is_reset(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Serving(*pair, "builtin", settings) as serving:
        Client(serving.url).chat(FACT, "hurt")
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        refused = client.chat(QUESTION, "hurt")
        assert refused.status == 409 and refused.code == "memory_unusable"
        assert str(tmp_path) not in refused.body.decode()
        assert client.chat(QUESTION, "hurt", memory={"reset": True}).status == 200


def test_a_memory_that_cannot_be_saved_is_not_kept(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltamem_mlx.serve import folder

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        client.chat(FACT, "full")
        with monkeypatch.context() as patch:
            patch.setattr(folder, "write_memory", full)
            assert client.chat(QUESTION, "full").code == "not_saved"
        assert client.memory("GET", "full").json["turns"] == 1
        assert client.chat(QUESTION, "full").memory["turns"] == 2
