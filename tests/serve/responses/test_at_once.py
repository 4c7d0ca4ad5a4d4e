"""Responses at the same time, given up half-way, and after their contexts have left RAM."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving import ANSWER, ENDLESS, FACT, QUESTION, Client, builtin_pair, memory_files, until

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

CITIES = ("oslo", "rome", "paris", "london")


def ask(client: Client, text: str, **more: object) -> dict:
    body = {"input": text, "max_output_tokens": 24} | more
    return client.request("POST", "/v1/responses", body).json


def said(response: dict) -> str:
    return response["output"][-1]["content"][0]["text"]


def test_branches_at_once_know_only_their_own(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    with Server(*builtin_pair(), "builtin", settings) as server, ThreadPoolExecutor(8) as pool:
        client = Client(server.url)
        begun = ask(client, "ben is a doctor .")["id"]

        def branch(city: str) -> str:
            told = ask(client, f"anna lives in {city} .", previous_response_id=begun)
            drop = {"memory": {"context": "drop"}}
            return said(ask(client, QUESTION, previous_response_id=told["id"], **drop))

        alone = {city: branch(city) for city in CITIES}
        assert list(pool.map(branch, CITIES * 4)) == list(alone.values()) * 4
        assert ANSWER in alone["oslo"] and "rome" in alone["rome"]


def test_a_conversation_answers_one_at_a_time() -> None:
    with (
        Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server,
        ThreadPoolExecutor(8) as pool,
    ):
        client = Client(server.url)
        id = client.request("POST", "/v1/conversations", {}).json["id"]
        answers = list(pool.map(lambda _: ask(client, FACT, conversation=id), range(8)))
        assert sorted(a["usage"]["memory"]["turns"] for a in answers) == list(range(1, 9))
        items = client.request("GET", f"/v1/conversations/{id}/items?limit=100").json["data"]
        assert [item["role"] for item in items] == ["assistant", "user"] * 8


@pytest.mark.parametrize("route", ["/v1/responses", "/v1/messages"])
def test_a_client_that_goes_away_leaves_nothing(tmp_path: Path, route: str) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    bias = ENDLESS["logit_bias"]
    body = {"input": "hi", "max_output_tokens": 4000, "stream": True, "logit_bias": bias}
    if route == "/v1/messages":
        body = ENDLESS | {"stream": True, "memory": {"session": "me"}}
    with Server(*builtin_pair(), "builtin", settings) as server:
        raw = json.dumps(body).encode()
        with socket.create_connection(server.http.server_address[:2]) as connection:
            head = f"POST {route} HTTP/1.0\r\nContent-Length: {len(raw)}\r\n\r\n"
            connection.sendall(head.encode() + raw)
            with connection.makefile("rb") as lines:
                while b"delta" not in lines.readline():
                    pass
        until(lambda: not server.busy)
        assert memory_files(tmp_path) == []
        assert Client(server.url).request("GET", "/v1/memories").json["data"] == []


def test_where_the_context_has_left_ram_the_memory_is_gone_on_from(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, memory_bytes=1)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        told = ask(client, FACT)
        ask(client, "anna lives in rome .", previous_response_id=told["id"])
        ask(client, "ben is a doctor .")
        asked = ask(client, QUESTION, previous_response_id=told["id"])
        assert ANSWER in said(asked) and asked["usage"]["memory"]["turns"] == 2
        assert len(memory_files(tmp_path)) == 4


def test_a_response_that_fails_leaves_no_memory(tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, max_prompt_tokens=40)
    with Server(*builtin_pair(), "builtin", settings) as server:
        client = Client(server.url)
        told = ask(client, FACT)
        refused = ask(client, FACT * 40, previous_response_id=told["id"])
        assert refused["error"]["code"] == "context_length_exceeded"
        assert len(memory_files(tmp_path)) == 1
        assert len(client.request("GET", "/v1/memories").json["data"]) == 1
        assert ANSWER in said(ask(client, QUESTION, previous_response_id=told["id"]))


def test_what_only_looks_like_a_task_is_gone_on_from() -> None:
    text = f"# Task\nFix the failing test in foo.py\n{FACT}"
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        told = ask(client, text)
        assert told["usage"]["memory"]["turns"] == 1
        asked = ask(client, QUESTION, previous_response_id=told["id"])
        assert ANSWER in said(asked) and asked["usage"]["memory"]["turns"] == 2
        again = ask(client, text, previous_response_id=asked["id"])
        assert again["usage"]["memory"]["turns"] == 3
        assert ask(client, text, conversation="any")["usage"]["memory"]["turns"] == 1


@pytest.mark.parametrize("memory", [{"task": True}, {"read_only": True}], ids=str)
def test_nothing_goes_on_from_a_response_of_which_nothing_is_kept(memory: dict) -> None:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        given = ask(client, FACT, memory=memory)
        assert client.request("GET", f"/v1/responses/{given['id']}").status == 200
        body = {"input": QUESTION, "previous_response_id": given["id"]}
        refused = client.request("POST", "/v1/responses", body)
        assert refused.status == 409 and refused.code == "not_kept"
        assert refused.json["error"]["param"] == "previous_response_id"
