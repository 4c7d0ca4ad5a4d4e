"""What names a memory: headers of the user's choice, and its id where its key is not known."""

from pathlib import Path

import pytest
from serving import ANSWER, CHAT, FACT, QUESTION, Client, builtin_pair, states_in, user

from deltamem_mlx.memory.shelf import id_of
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings, SettingsError

DROP = {"context": "drop"}
HEADERS = ("X-OpenWebUI-Chat-Id", "X-Other")


def test_a_chosen_header_names_a_memory_on_every_route() -> None:
    settings = ServeSettings(port=0, session_headers=HEADERS)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        fact = {"messages": [user(FACT)], "max_tokens": 8}
        asked = client.request("POST", CHAT, fact, {"x-openwebui-chat-id": "a"})
        assert asked.json["usage"]["memory"]["session"] == "a"
        message = client.request("POST", "/v1/messages", fact, {"X-Other": "b"})
        assert message.json["usage"]["memory"]["session"] == "b"
        said = {"input": FACT, "max_output_tokens": 8}
        response = client.request("POST", "/v1/responses", said, {"X-Other": "c"})
        assert response.json["usage"]["memory"]["session"] == "c"
        for key in "abc":
            assert ANSWER in client.chat(QUESTION, key, memory=DROP).text
        both = {"X-Other": "a", "X-OpenWebUI-Chat-Id": "b"}
        assert client.request("POST", CHAT, fact, both).status == 400
        same = {"X-Other": "a", "X-Delta-Mem-Session": "a"}
        assert client.request("POST", CHAT, fact, same).json["usage"]["memory"]["session"] == "a"


def test_what_is_told_through_one_api_is_known_through_all_and_through_no_other_name() -> None:
    def ask(api: str, text: str, key: str) -> bytes:
        said = {"input": text, "max_output_tokens": 24}
        if api != "/v1/responses":
            said = {"messages": [user(text)], "max_tokens": 24}
        said["memory"] = {"session": key, **DROP}
        return client.request("POST", api, said).body

    apis = (CHAT, "/v1/responses", "/v1/messages")
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        for told in apis:
            ask(told, FACT, told)
            for asked in apis:
                assert ANSWER.encode() in ask(asked, QUESTION, told)
                assert b"do not know" in ask(asked, QUESTION, f"other than {told}")


def test_without_the_setting_a_header_names_nothing() -> None:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        fact = {"messages": [user(FACT)], "max_tokens": 8}
        reply = Client(server.url).request("POST", CHAT, fact, {"X-OpenWebUI-Chat-Id": "a"})
        assert "memory" not in reply.json["usage"]


@pytest.mark.parametrize(
    "name", ["", "two words", "Authorization", "host", "X-Ünicode", "x:", "x" * 129]
)
def test_names_that_no_header_has_or_all_requests_do_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="--session-header"):
        ServeSettings(session_headers=("X-Chat", name))


def test_a_memory_known_by_its_id_only_is_shown_exported_copied_and_deleted(
    tmp_path: Path,
) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        client.chat(FACT, "me")
        id, file = client.memory("GET", "me").json["id"], client.memory("GET", "me", "/export").body
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        (listed,) = client.request("GET", "/v1/memories").json["data"]
        assert listed["session"] is None and listed["id"] == id
        shown = client.memory("GET", id).json
        assert shown["turns"] == 1 and shown["id"] == id and shown["session"] is None
        assert states_in(client.memory("GET", id, "/export").body).keys() == states_in(file).keys()
        assert len(client.memory("GET", id, "/turns").json["data"]) == 1
        assert client.memory("POST", id, "/fork", {"to": "copy"}).status == 201
        assert ANSWER in client.chat(QUESTION, "copy", memory=DROP).text
        assert client.memory("DELETE", id).status == 200
        for name in (id, "me"):
            assert client.memory("GET", name).status == 404
        assert client.memory("DELETE", id).status == 404


def test_a_key_that_looks_like_an_id_is_a_key() -> None:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        client.chat(FACT, "me")
        id = client.memory("GET", "me").json["id"]
        assert "memory" in client.chat(QUESTION, id).json["usage"]
        own = client.memory("GET", id).json
        assert own["session"] == id and own["id"] != id
        assert client.memory("DELETE", id).status == 200
        assert client.memory("GET", id).json["session"] == "me"


def test_taking_back_by_id(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        for said in (FACT, "ben is a doctor ."):
            client.chat(said, "me")
        id = client.memory("GET", "me").json["id"]
        assert client.memory("POST", id, "/undo").json["turns"] == 1
        assert client.memory("GET", "me").json["turns"] == 1


def test_a_memory_is_renamed_by_its_key_or_its_id_with_all_that_belongs_to_it(
    tmp_path: Path,
) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path / "m", context_dir=tmp_path / "c")
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        client.chat(FACT, "old")
        client.chat("ben is a doctor .", "taken")
        said = {"input": FACT, "conversation": "old", "max_output_tokens": 8}
        response = client.request("POST", "/v1/responses", said).json["id"]
        before = client.memory("GET", "old").json
        for to, status in (("taken", 409), ("old", 409), ("", 400), ("x" * 513, 400), (1, 400)):
            assert client.memory("POST", "old", "/rename", {"to": to}).status == status
        assert client.memory("POST", "old", "/rename", {"to": "new", "x": 1}).status == 400
        assert client.memory("POST", "none", "/rename", {"to": "new"}).code == "memory_not_found"
        renamed = client.memory("POST", "old", "/rename", {"to": "new/ä"}).json
        own = {"session", "id"}
        assert {k: v for k, v in renamed.items() if k not in own} == {
            k: v for k, v in before.items() if k not in own
        }
        assert client.memory("GET", "old").status == 404
        assert client.request("GET", "/v1/conversations/old/items").status == 404
        assert len(client.request("GET", "/v1/conversations/new%2F%C3%A4/items").json["data"]) == 2
        asked = client.chat(QUESTION, "new/ä")
        assert ANSWER in asked.text and asked.memory["turns"] == 3
        assert asked.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        id = client.memory("GET", "new/ä").json["id"]
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        assert client.memory("POST", id, "/rename", {"to": "me"}).json["session"] == "me"
        asked = client.chat(QUESTION, "me")
        assert ANSWER in asked.text
        assert asked.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
        assert client.memory("GET", id).status == 404
        assert len(client.request("GET", "/v1/memories").json["data"]) == 2
        assert client.request("GET", f"/v1/responses/{response}").status == 404


def test_a_memory_deleted_by_its_id_takes_its_responses_with_it() -> None:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        said = {"input": FACT, "conversation": "me", "max_output_tokens": 8}
        response = client.request("POST", "/v1/responses", said).json["id"]
        id = client.memory("GET", "me").json["id"]
        client.memory("POST", id, "/rename", {"to": "you"})
        assert client.request("GET", f"/v1/responses/{response}").status == 200
        id = client.memory("GET", "you").json["id"]
        assert client.memory("DELETE", id).status == 200
        assert client.request("GET", f"/v1/responses/{response}").status == 404
        assert client.request("GET", "/v1/conversations/you/items").status == 404


@pytest.mark.parametrize("how", ["delete", "rename"])
def test_what_belongs_to_a_memory_that_left_ram_is_found_by_its_id(
    tmp_path: Path, how: str
) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, memory_bytes=1)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        said = {"input": FACT, "conversation": "me", "max_output_tokens": 8}
        response = client.request("POST", "/v1/responses", said).json["id"]
        others = said | {"conversation": "other"}  # after which the first is in its file only
        other = client.request("POST", "/v1/responses", others).json["id"]
        id = id_of("me")
        if how == "delete":
            assert client.memory("DELETE", id).status == 200
            assert client.request("GET", f"/v1/responses/{response}").status == 404
            assert client.request("GET", "/v1/conversations/me/items").status == 404
        else:
            assert client.memory("POST", id, "/rename", {"to": "you"}).status == 200
            items = client.request("GET", "/v1/conversations/you/items").json["data"]
            assert len(items) == 2
            assert client.memory("DELETE", "you").status == 200
            assert client.request("GET", f"/v1/responses/{response}").status == 404
        assert client.request("GET", f"/v1/responses/{other}").status == 200
        assert len(client.request("GET", "/v1/conversations/other/items").json["data"]) == 2
