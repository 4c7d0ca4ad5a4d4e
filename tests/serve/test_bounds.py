"""What the server refuses beside bodies, what it survives, and that it goes on afterwards."""

import json
import math
import re
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from mlx_lm.generate import BatchGenerator
from serving import CHAT, ENDLESS, HELLO, Client, Pair, memory_files, stream, until

from deltamem_mlx.memory.shelf import id_of
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings, SettingsError, check_exposure


@pytest.fixture(scope="module")
def serving(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = ServeSettings(
        port=0,
        memory_dir=tmp_path_factory.mktemp("memories"),
        max_body_bytes=100_000,
        max_tokens_limit=3000,
        max_prompt_tokens=2000,
    )
    with Server(*pair, "builtin", settings) as serving:
        yield serving
        assert Client(serving.url).chat("hi", max_tokens=1).status == 200  # after all of it


@pytest.fixture(scope="module")
def impatient(pair: Pair) -> Iterator[Server]:
    """A server that waits for no client's request longer than a second."""
    with Server(*pair, "builtin", ServeSettings(port=0, request_timeout=1.0)) as serving:
        yield serving


@pytest.fixture
def client(serving: Server) -> Client:
    return Client(serving.url)


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/v1", 404),
        ("DELETE", "/v1/memories/", 400),
        ("GET", "/v1/memories/a/b/c", 404),
        ("GET", "/v1/memories/%ff", 400),
        ("GET", "/v1/memories/..%2f..%2fx", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", CHAT, 405),
        ("DELETE", CHAT, 405),
        ("PUT", "/v1/memories", 405),
        ("POST", "/v1/memories/a/export", 405),
        ("PATCH", CHAT, 405),
        ("BREW", "/", 405),
        ("DELETE", "/v1/memories/nobody", 404),
    ],
)
def test_other_addresses_and_methods(client: Client, method: str, path: str, status: int) -> None:
    reply = client.request(method, path, b"" if method in ("PUT", "POST") else None)
    assert reply.status == status
    assert reply.json["error"]["message"]


def test_a_huge_body_is_refused_before_it_is_read(client: Client) -> None:
    reply = client.request("POST", CHAT, b"x" * 100_001)
    assert reply.status == 413 and reply.code == "too_large"
    assert client.request("PUT", "/v1/memories/a", b"x" * 3_000_000).status == 413


@pytest.mark.parametrize(
    "head, status",
    [
        ("POST /v1/chat/completions HTTP/1.1", 411),
        ("POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked", 411),
        ("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -5", 400),
        ("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1e3", 400),
        ("POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999999999999", 413),
        ("GARBAGE", 400),
        ("GET / HTTP/9.9.9", 400),
        ("GET / HTTP/1.1\r\n" + "A: b\r\n" * 200, 431),
        ("GET /" + "a" * 70_000 + " HTTP/1.1", 414),
    ],
    ids=["no length", "chunked", "negative", "no number", "too large", "garbage", "version",
         "many headers", "long address"],
)  # fmt: skip
def test_malformed_requests(serving: Server, client: Client, head: str, status: int) -> None:
    with socket.create_connection(serving.http.server_address[:2], timeout=120) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        said = connection.makefile("rb").read()
    assert said.split()[1] == str(status).encode()
    assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["message"]


@pytest.mark.parametrize("sent", [b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nA:"])
def test_a_client_that_never_ends_its_request_is_let_go(impatient: Server, sent: bytes) -> None:
    with socket.create_connection(impatient.http.server_address[:2], timeout=120) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        connection.makefile("rb").read()
        assert time.monotonic() - began < 25  # usual are 30 seconds


def test_a_body_byte_by_byte_is_not_waited_for(impatient: Server) -> None:
    """A byte now and then never runs into a socket's timeout."""
    began = time.monotonic()
    with socket.create_connection(impatient.http.server_address[:2], timeout=120) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        connection.settimeout(0.2)
        said = b""
        while not said and time.monotonic() - began < 25:  # usual are 30 seconds
            with suppress(ConnectionError):  # it may have been let go by now
                connection.sendall(b" ")
            with suppress(TimeoutError):
                said = connection.recv(4096)
    assert said.split()[1] == b"408"


def test_a_memory_in_use_is_409_in_time(pair: Pair) -> None:
    settings = ServeSettings(port=0, wait=0.2)
    with Server(*pair, "builtin", settings) as serving, serving.memories.hold("taken"):
        client = Client(serving.url)
        reply = client.chat("hi", "taken")
        assert reply.status == 409 and reply.code == "memory_busy"
        assert reply.headers["retry-after"]
        assert client.memory("DELETE", "taken").code == "memory_busy"


@pytest.mark.parametrize("option", ["wait", "request_timeout"])
@pytest.mark.parametrize("seconds", [-1.0, 1e10, math.inf, math.nan])
def test_a_time_that_nothing_can_wait_for_is_refused(option: str, seconds: float) -> None:
    """Each request would fail of it."""
    named = (
        f"^--{option.replace('_', '-')} {re.escape(str(seconds))}: expected .* to 86400 seconds.$"
    )
    with pytest.raises(SettingsError, match=named):
        ServeSettings(**{option: seconds})
    ServeSettings(**{option: 86_400.0})


def test_who_looks_does_not_wait_for_what_is_not_there(pair: Pair) -> None:
    settings = ServeSettings(port=0, wait=0.2)
    with Server(*pair, "builtin", settings) as serving:
        client, memories = Client(serving.url), serving.memories
        with memories.hold("begun"):  # as its first turn does
            assert client.memory("GET", "begun").code == "memory_not_found"
            assert client.memory("GET", "begun", "/export").code == "memory_not_found"
        client.chat("hi", "told", max_tokens=1)
        memories.fork("told", "copy")
        with memories.hold("copy"):
            assert memories.look("copy", context=True).talk is None


def test_a_memory_is_not_waited_for_to_be_told_that_its_key_is_taken(pair: Pair) -> None:
    settings = ServeSettings(port=0, wait=0.2)
    with Server(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        for key in "ab":
            client.chat("hi", key, max_tokens=1)
        with serving.memories.hold("a"), serving.memories.hold("b"):
            for key, to in ("ab", "ba"):
                assert client.memory("POST", key, "/rename", {"to": to}).code == "memory_exists"


def test_two_that_are_renamed_never_wait_for_each_other(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, wait=20)) as serving:
        client, memories = Client(serving.url), serving.memories
        first, second = sorted("ab", key=id_of)
        client.chat("hi", second, max_tokens=1)
        with ThreadPoolExecutor() as threads:
            with memories.hold(first) as held:
                renamed = threads.submit(memories.rename, second, first)
                until(lambda: held.users == 2)
                with memories.hold(second):  # another that has the first may have the second
                    pass
            assert renamed.result()[0].key == first


def test_pages_of_other_origins_may_not_call(pair: Pair, client: Client) -> None:
    evil = {"Origin": "https://evil.example"}
    reply = client.request("POST", CHAT, HELLO, evil)
    assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
    with Server(*pair, "builtin", ServeSettings(port=0, allowed_origins=("https://app",))) as other:
        asked = Client(other.url).request("POST", CHAT, HELLO, {"Origin": "https://app"})
        assert asked.headers["access-control-allow-origin"] == "https://app"
        assert Client(other.url).request("OPTIONS", CHAT).status == 204


def test_a_key_opens_every_route(pair: Pair) -> None:
    settings = ServeSettings(port=0, api_key="schlüssel")
    with Server(*pair, "builtin", settings) as serving:
        without, wrong = Client(serving.url), Client(serving.url, Authorization="Bearer x")
        given = "Bearer schlüssel".encode().decode("latin-1")
        right = Client(serving.url, Authorization=given)
        for method, path in [
            ("POST", CHAT),
            ("GET", "/v1/models"),
            ("GET", "/v1/memories"),
            ("DELETE", "/v1/memories"),
            ("GET", "/v1/memories/a/export"),
            ("GET", "/metrics"),
        ]:
            body = HELLO if method == "POST" else None
            assert without.request(method, path, body).code == "invalid_api_key"
            assert wrong.request(method, path, body).status == 401
            assert right.request(method, path, body).status in (200, 404)
        assert without.request("GET", "/health").json == {"status": "ok"}


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::"])
def test_others_may_not_connect_without_a_key(host: str) -> None:
    with pytest.raises(ValueError, match="--api-key"):
        check_exposure(ServeSettings(host=host))
    check_exposure(ServeSettings(host=host, api_key="k"))
    check_exposure(ServeSettings(host=host, insecure=True))


def test_too_many_requests_are_told_to_come_back(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, max_queue=1)) as serving:
        client = Client(serving.url)
        with serving.admitted():
            reply = client.chat("hi")
        assert reply.status == 429 and reply.code == "queue_full" and reply.headers["retry-after"]
        assert client.chat("hi").status == 200


def test_too_many_connections_are_closed(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, max_connections=1)) as serving:
        address = serving.http.server_address[:2]
        first = stream(serving, ENDLESS)
        next(first)
        with socket.create_connection(address, timeout=120) as second:
            assert second.makefile("rb").read().split()[1] == b"503"
        first.close()


def test_a_broken_batch_fails_its_requests_and_nothing_else(
    serving: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.chat("anna lives in oslo .", "survivor")
    with monkeypatch.context() as patch:
        patch.setattr(BatchGenerator, "next", _out_of_memory)
        reply = client.chat("hi", "survivor")
    assert reply.status == 500 and "secret" not in reply.body.decode()
    assert client.memory("GET", "survivor").json["turns"] == 1
    assert client.chat("hi", "survivor").memory["turns"] == 2


def _out_of_memory(_: BatchGenerator) -> None:
    raise RuntimeError("[malloc] secret address")


def test_a_refusal_after_the_first_step_is_no_failure_of_the_server(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    memory = {"session": "late", "remember": "ben is a doctor ."}
    too_long = client.chat("anna " * 2500, memory=memory)
    assert too_long.code == "context_length_exceeded"
    assert client.chat("hi", memory=memory, logit_bias={"999999": 1}).status == 400
    assert client.memory("GET", "late").status == 404
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_metrics_and_logs_count_and_say_nothing(
    serving: Server, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client.chat("ben is a doctor .", "private-key")
    client.request("POST", CHAT, b'{"messages": "ben is a doctor"')
    # A request is counted and logged when its client has been answered.
    until(lambda: any("written" in str(vars(record)) for record in caplog.records))
    metrics = client.request("GET", "/metrics").body.decode()
    assert 'deltamem_requests_total{method="POST",route="/v1/chat/completions"' in metrics
    assert 'deltamem_turns_total{outcome="kept"}' in metrics
    for line in metrics.splitlines():
        assert line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0
    fields = [str(vars(record)) for record in caplog.records if "deltamem" in record.name]
    assert not any("ben" in text or "private-key" in text for text in [metrics, *fields])


def test_clients_do_not_make_up_counters(client: Client) -> None:
    before = client.request("GET", "/metrics").body.decode().count("\n")
    for i in range(9):
        assert client.request(f'BREW"{i}', "/").status == 405
    after = client.request("GET", "/metrics").body.decode()
    assert "BREW" not in after and after.count("\n") <= before + 2


def test_shutdown_lets_answers_end_and_saves_them(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path)
    asked = ENDLESS | {"max_tokens": 60, "memory": {"session": "last"}}
    with Server(*pair, "builtin", settings) as serving:
        answer = stream(serving, asked | {"stream_options": {"include_usage": True}})
        next(answer)
    *_, usage, done = [line for _, line in answer]
    assert done == b"[DONE]" and json.loads(usage)["usage"]["completion_tokens"] == 60
    assert len(memory_files(tmp_path)) == 1


def test_a_context_never_grows_beyond_what_a_prompt_may_have(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, max_prompt_tokens=60)) as serving:
        client = Client(serving.url)
        client.chat("ben is a doctor .", "long")
        for turn in range(12):
            reply = client.chat("anna lives in oslo .", "long")
            assert reply.status == 200 and reply.memory["turns"] == turn + 2
            assert reply.memory["context_tokens"] <= 60
