"""Who may ask, and how: names of the server, keys, and heads that two programs read differently."""

import http.client
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import CHAT, HELLO, Client, Pair
from typer.testing import CliRunner

from deltamem_mlx.cli.main import app
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings, SettingsError


@pytest.fixture(scope="module")
def server(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "builtin", ServeSettings(port=0)) as server:
        yield server
        assert Client(server.url).chat("hi", max_tokens=1).status == 200  # after all of it


def said_to(server: Server, raw: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the answer to these bytes."""
    with socket.create_connection(server.http.server_address[:2], timeout=120) as connection:
        connection.sendall(raw)
        head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
    line, *headers = head.decode("latin-1").split("\r\n")
    return int(line.split()[1]), dict(h.split(": ", 1) for h in headers), body


def host_status(server: Server, host: str, path: str = "/v1/memories") -> int:
    raw = f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n"
    status, _, body = said_to(server, raw.encode("latin-1"))
    assert status == 200 or json.loads(body)["error"]["code"] == "bad_host"
    return status


OWN = ["localhost", "LOCALHOST:8080", "localhost.", "127.0.0.1", "127.0.0.1:1", "127.9.9.9:80",
       "[::1]", "[::1]:8080"]  # fmt: skip
OTHERS = [
    "evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
    "evil-localhost", "notlocalhost", "10.0.0.1", "192.168.1.7:8080", "0.0.0.0", "[::]",
    "[2001:db8::1]", "localhost@evil.example", "evil.example@localhost", "localhost, evil.example",
    "localhost evil.example", "localhost:80:80", "localhost/evil", "", " ", ":80", "[::1", "::1",
    "2130706433", "127.1", "ö.example",
]  # fmt: skip


@pytest.mark.parametrize("host", OWN)
def test_a_server_without_a_key_answers_under_this_machines_own_names(
    server: Server, host: str
) -> None:
    assert host_status(server, host) == 200


@pytest.mark.parametrize("host", OTHERS)
def test_a_page_whose_name_was_made_to_mean_this_machine_gets_nothing(
    server: Server, host: str
) -> None:
    for path in ("/v1/memories", "/v1/memories/a/export", "/v1/models", "/metrics"):
        assert host_status(server, host, path) == 403


def test_health_is_told_to_any_name_and_programs_without_a_name_are_answered(
    server: Server,
) -> None:
    assert host_status(server, "evil.example", "/health") == 200
    assert said_to(server, b"GET /v1/memories HTTP/1.0\r\n\r\n")[0] == 200


def test_names_that_were_allowed_and_addresses_of_a_server_for_all_are_answered(
    pair: Pair,
) -> None:
    named = ServeSettings(port=0, allowed_hosts=("Box.lan",))
    with Server(*pair, "builtin", named) as server:
        assert host_status(server, "box.LAN:8080") == 200
        assert host_status(server, "other.lan") == host_status(server, "10.0.0.1") == 403
    with Server(*pair, "builtin", ServeSettings(port=0, allowed_hosts=("*",))) as server:
        assert host_status(server, "any.example") == 200
    with Server(*pair, "builtin", ServeSettings("0.0.0.0", port=0, insecure=True)) as server:
        assert host_status(server, "10.0.0.1:80") == host_status(server, "localhost") == 200
        assert host_status(server, "evil.example") == 403


def test_who_has_the_key_may_use_any_name(pair: Pair) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, api_key="k")) as server:
        ask = (
            "GET /v1/memories HTTP/1.1\r\nHost: proxied.example\r\nAuthorization: Bearer {}\r\n\r\n"
        )
        assert said_to(server, ask.format("k").encode())[0] == 200
        assert said_to(server, ask.format("x").encode())[0] == 401


@pytest.mark.parametrize("key", [" pass ", "pass\n", "\tpass\r\n", "\u00a0pass"])
def test_space_around_a_key_is_not_part_of_it(pair: Pair, key: str) -> None:
    with Server(*pair, "builtin", ServeSettings(port=0, api_key=key)) as server:
        for given in ("pass", " pass", "pass "):
            client = Client(server.url, Authorization=f"Bearer {given}")
            assert client.request("GET", "/v1/models").status == 200
        assert Client(server.url).request("GET", "/v1/models").status == 401


@pytest.mark.parametrize("key", ["", " ", "\n", "two\nlines", "nul\0", "\udcff"])
def test_a_key_that_no_header_can_hold_is_refused_at_start(key: str) -> None:
    with pytest.raises(SettingsError, match="--api-key"):
        ServeSettings(api_key=key)


@pytest.mark.parametrize("host", ["", "nowhere.invalid", "a" * 300, "\0", ".."])
def test_a_host_that_means_no_address_is_refused_by_its_option(pair: Pair, host: str) -> None:
    with pytest.raises(SettingsError, match=r"^--host '.{0,90}: expected .*$"):
        Server(*pair, "builtin", ServeSettings(host=host, api_key="k"))


def test_a_port_that_is_taken_is_named(pair: Pair, server: Server) -> None:
    port = server.http.server_port
    with pytest.raises(OSError, match=f"--port {port}: another program listens there"):
        Server(*pair, "builtin", ServeSettings(port=port))
    assert Client(server.url).chat("hi", max_tokens=1).status == 200


BODY = json.dumps(HELLO).encode()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
HEADS = {
    "two lengths": LENGTH + b"Content-Length: 2\r\n",
    "two lengths that agree": LENGTH + LENGTH,
    "two lengths in one": b"Content-Length: 2, 2\r\n",
    "a signed length": b"Content-Length: +2\r\n",
    "a length in hex": b"Content-Length: 0x2\r\n",
    "a length with a line": b"Content-Length:\r\n 2\r\n",
    "chunked": LENGTH + b"Transfer-Encoding: chunked\r\n",
    "chunked, hidden": LENGTH + b"Transfer-Encoding : chunked\r\n",
    "chunked, badly": LENGTH + b"Transfer-Encoding: xchunked\r\n",
    "chunked, empty": LENGTH + b"Transfer-Encoding:\r\n",
    "chunked over lines": LENGTH + b"Transfer-Encoding:\r\n chunked\r\n",
    "two hosts": LENGTH + b"Host: evil.example\r\n",
    "two origins": LENGTH + b"Origin: http://a\r\nOrigin: http://b\r\n",
    "two keys": LENGTH + b"Authorization: Bearer a\r\nAuthorization: Bearer b\r\n",
    "two sessions": LENGTH + b"X-Delta-Mem-Session: a\r\nX-Delta-Mem-Session: b\r\n",
    "two sessions of two kinds": LENGTH
    + b"X-Delta-Mem-Session: a\r\nX-Delta-Mem-Session-Key: b\r\n",
    "a session over lines": LENGTH + b"X-Delta-Mem-Session: a\r\n b\r\n",
    "two snippets": LENGTH
    + b"X-Delta-Mem-Session: a\r\nX-Delta-Attention-State: b\r\nX-Delta-Attention-State: c\r\n",
    "no header": LENGTH + b"nonsense\r\n",
    "a space before the colon": b"X : y\r\n" + LENGTH,
    "a null character": LENGTH + b"X-Delta-Mem-Session: a\0b\r\n",
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS.keys())
def test_heads_that_two_programs_read_differently_are_refused(server: Server, head: bytes) -> None:
    status, _, body = said_to(server, POST + head + b"\r\n" + BODY)
    assert status in (400, 411) and json.loads(body)["error"]["message"]
    assert not server.memories.listed()


def test_a_client_that_waits_for_leave_to_send_its_body_is_given_it(server: Server) -> None:
    head = POST + LENGTH + b"Expect: 100-continue\r\n\r\n"
    with socket.create_connection(server.http.server_address[:2], timeout=20) as connection:
        connection.sendall(head)
        assert connection.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(BODY)
        assert connection.makefile("rb").readline().split()[1] == b"200"
    refused = POST + b"Content-Length: 99999999999\r\nExpect: 100-continue\r\n\r\n"
    assert said_to(server, refused)[0] == 413
    assert said_to(server, head.replace(b"HTTP/1.1", b"HTTP/1.0") + BODY)[0] == 200


def test_a_page_that_may_call_may_send_its_key(pair: Pair) -> None:
    settings = ServeSettings(port=0, api_key="k", allowed_origins=("http://page.example",))
    asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "authorization, content-type"}  # fmt: skip
    with Server(*pair, "builtin", settings) as server:
        connection = http.client.HTTPConnection(*server.http.server_address[:2], timeout=120)
        connection.request("OPTIONS", CHAT, headers=asked)
        answer = connection.getresponse()
        connection.close()
    assert answer.status == 204
    assert answer.getheader("Access-Control-Allow-Origin") == asked["Origin"]
    assert answer.getheader("Access-Control-Allow-Headers") == "*, Authorization"


@pytest.mark.parametrize("line", [b"GET /health", b"GET /v1/memories", b"POST /health", b"GET"])
def test_http_0_9_is_refused_at_once(server: Server, line: bytes) -> None:
    assert said_to(server, line + b"\r\n")[0] == 400


def test_a_head_is_answered_as_get_is_without_a_body(server: Server) -> None:
    client = Client(server.url)
    client.chat("hi", "headed", max_tokens=1)
    paths = ("/health", "/metrics", "/v1/models", "/v1/memories", "/v1/memories/headed",
             "/v1/memories/headed/export", "/v1/memories/nobody", "/nowhere", CHAT)  # fmt: skip
    for path in paths:
        status, headers, body = said_to(
            server, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        got = client.request("GET", path)
        assert status == got.status and body == b""
        assert headers["Content-Type"] == got.headers["content-type"]
        if path != "/metrics":
            assert headers["Content-Length"] == got.headers["content-length"]
    client.memory("DELETE", "headed")


def test_a_session_named_twice_alike_is_one(server: Server) -> None:
    twice = b"X-Delta-Mem-Session: same\r\nX-Delta-Mem-Session: same\r\n"
    assert said_to(server, POST + LENGTH + twice + b"\r\n" + BODY)[0] == 200
    assert Client(server.url).memory("DELETE", "same").status == 200


def test_a_key_in_a_file_that_is_named_comes_before_the_environments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str | None] = []
    serving = "deltamem_mlx.cli.serve.serve_until_ended"
    monkeypatch.setattr(serving, lambda *args: keys.append(args[-2].api_key))
    monkeypatch.setenv("DELTAMEM_API_KEY", "of-environment")
    (tmp_path / "server.yaml").write_text("api-key: of-file\n")
    for words in ([], ["-c", str(tmp_path / "server.yaml")], ["--api-key", "of-flag"]):
        done = CliRunner().invoke(app, ["serve", *words])
        assert done.exit_code == 0, done.stderr
    assert keys == ["of-environment", "of-file", "of-flag"]
