"""What the server refuses, and that it goes on afterwards."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import Client

import deltamem_mlx as dm
from deltamem_mlx import builtin
from deltamem_mlx.serve.server import Serving
from deltamem_mlx.serve.settings import ServeSettings, check_exposure

Pair = tuple[nn.Module, TokenizerWrapper]
CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "where does anna live ?"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def pair() -> Pair:
    return dm.load(str(builtin.base_folder()), str(builtin.adapter_folder()))


@pytest.fixture(scope="module")
def serving(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    settings = ServeSettings(
        port=0,
        memory_dir=tmp_path_factory.mktemp("memories"),
        max_body_bytes=100_000,
        max_tokens_limit=3000,
        max_prompt_tokens=2000,
        request_timeout=1.0,
        wait=0.2,
    )
    with Serving(*pair, "builtin", settings) as serving:
        yield serving
        assert Client(serving.url).chat("hi", max_tokens=1).status == 200  # after all of it


@pytest.fixture
def client(serving: Serving) -> Client:
    return Client(serving.url)


def changed(**fields: object) -> dict:
    return HELLO | fields


def message(**fields: object) -> dict:
    return changed(messages=[{"role": "user", "content": "hi"} | fields])


BAD = {
    "no messages": {"max_tokens": 4},
    "messages: empty": changed(messages=[]),
    "messages: text": changed(messages="hello"),
    "messages: numbers": changed(messages=[1, 2]),
    "role: missing": changed(messages=[{"content": "hi"}]),
    "role: list": message(role=["user"]),
    "content: number": message(content=3),
    "content: null": message(content=None),
    "content: object": message(content={"text": "hi"}),
    "content: image": message(
        content=[{"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x"}}]
    ),
    "content: part without text": message(content=[{"type": "text"}]),
    "tool_calls: text": message(role="assistant", tool_calls="x"),
    "tool_calls: no json": message(
        role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]
    ),
    "tools: object": changed(tools={"a": 1}),
    "tools: texts": changed(tools=["a"]),
    "template: text": changed(chat_template_kwargs="x"),
    "template: another": changed(chat_template_kwargs={"chat_template": "{{ 1 }}"}),
    "template: not tokenized": changed(chat_template_kwargs={"tokenize": False}),
    "role_mapping: list": changed(role_mapping=["a"]),
    "max_tokens: text": changed(max_tokens="10"),
    "max_tokens: zero": changed(max_tokens=0),
    "max_tokens: true": changed(max_tokens=True),
    "max_tokens: too many": changed(max_tokens=3001),
    "max_tokens: huge": changed(max_tokens=10**30),
    "temperature: text": changed(temperature="hot"),
    "temperature: negative": changed(temperature=-1),
    "temperature: true": changed(temperature=True),
    "top_p: over": changed(top_p=2),
    "top_k: fraction": changed(top_k=0.5),
    "top_logprobs: many": changed(top_logprobs=50),
    "seed: text": changed(seed="a"),
    "seed: huge": changed(seed=2**70),
    "stream: text": changed(stream="yes"),
    "stream_options: text": changed(stream_options="x"),
    "stop: numbers": changed(stop=[1]),
    "stop: empty": changed(stop=[""]),
    "stop: many": changed(stop=["a"] * 99),
    "logit_bias: words": changed(logit_bias={"a": 1}),
    "logit_bias: outside": changed(logit_bias={"999999": 1}),
    "logit_bias: texts": changed(logit_bias={"1": "x"}),
    "n: two": changed(n=2),
    "adapters: another": changed(adapters="other"),
    "draft_model: another": changed(draft_model="other"),
    "model: list": changed(model=[]),
    "memory: text": changed(memory="me"),
    "memory: unknown field": changed(memory={"session": "a", "resett": True}),
    "memory: no session": changed(memory={"reset": True}),
    "memory: number": changed(memory={"session": 3}),
    "memory: empty key": changed(memory={"session": ""}),
    "memory: long key": changed(memory={"session": "a" * 513}),
    "memory: read_only": changed(memory={"session": "a", "read_only": "no"}),
    "memory: context": changed(memory={"session": "a", "context": "lose"}),
    "memory: remember": changed(memory={"session": "a", "remember": [1]}),
    "memory: remember nothing": changed(memory={"session": "a", "remember": " "}),
    "attention_state alone": changed(attention_state=["x"]),
    "attention_state: numbers": changed(attention_state=[1], memory={"session": "a"}),
    "prompt too long": message(content="anna " * 2500),
    "remembered too long": changed(memory={"session": "a", "remember": "anna " * 2500}),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_bad_fields_are_named(client: Client, body: dict) -> None:
    reply = client.request("POST", CHAT, body)
    assert reply.status == 400
    assert reply.json["error"]["type"] == "invalid_request_error"
    assert "Traceback" not in reply.json["error"]["message"]


RAW = {
    "no json": b"{",
    "nothing": b"",
    "a list": b"[]",
    "no utf-8": b'{"messages": "\xff"}',
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "NaN": b'{"temperature": NaN, "messages": [{"role": "user", "content": "hi"}]}',
    "infinite": b'{"temperature": 1e999, "messages": [{"role": "user", "content": "hi"}]}',
    "deep": b'{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "long number": b'{"max_tokens": ' + b"9" * 9000 + b"}",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_a_body_that_is_no_json_object_is_refused(client: Client, raw: bytes) -> None:
    for path in (CHAT, "/v1/completions", "/v1/memories/a/fork"):
        reply = client.request("POST", path, raw)
        assert reply.status == 400 and reply.code == "bad_json"


@pytest.mark.parametrize("prompt", [None, "", 3, ["a"], {"a": 1}])
def test_a_text_completion_needs_text(client: Client, prompt: object) -> None:
    assert client.request("POST", "/v1/completions", {"prompt": prompt}).status == 400
    named = {"prompt": "anna", "memory": {"session": "a"}}
    assert client.request("POST", "/v1/completions", named).status == 400


def test_only_the_served_model_is_there(client: Client) -> None:
    for name in ("gpt-4o", "../../etc", "user/repo", "http://127.0.0.1:1/x"):
        reply = client.request("POST", CHAT, changed(model=name))
        assert reply.status == 404 and reply.code == "model_not_found"
    (model,) = client.request("GET", "/v1/models").json["data"]
    assert client.request("POST", CHAT, changed(model=model["id"])).status == 200
    assert client.request("GET", f"/v1/models/{model['id']}").json["id"] == model["id"]
    assert client.request("GET", "/v1/models/other").status == 404


@pytest.mark.parametrize(
    "method, path, status",
    [
        ("GET", "/", 404),
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
def test_malformed_requests(serving: Serving, client: Client, head: str, status: int) -> None:
    with socket.create_connection(serving.http.server_address[:2], timeout=10) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n")
        said = connection.makefile("rb").read()
    assert said.split()[1] == str(status).encode()
    assert json.loads(said.split(b"\r\n\r\n", 1)[1])["error"]["message"]


@pytest.mark.parametrize("sent", [b"POST /v1/chat", b"POST /v1/chat/completions HTTP/1.1\r\nA:"])
def test_a_client_that_never_ends_its_request_is_let_go(
    serving: Serving, client: Client, sent: bytes
) -> None:
    with socket.create_connection(serving.http.server_address[:2], timeout=10) as connection:
        connection.sendall(sent)
        began = time.monotonic()
        connection.makefile("rb").read()
        assert time.monotonic() - began < 5


def test_a_body_byte_by_byte_is_not_waited_for(serving: Serving, client: Client) -> None:
    """A byte now and then never runs into a socket's timeout."""
    began = time.monotonic()
    with socket.create_connection(serving.http.server_address[:2], timeout=10) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 1000\r\n\r\n")
        connection.settimeout(0.2)
        said = b""
        while not said and time.monotonic() - began < 8:
            connection.sendall(b" ")
            try:
                said = connection.recv(4096)
            except TimeoutError:
                continue
    assert said.split()[1] == b"408"
    assert time.monotonic() - began < 6


def test_a_memory_in_use_is_409_in_time(serving: Serving, client: Client) -> None:
    with serving.memories.hold("taken"):
        reply = client.chat("hi", "taken")
        assert reply.status == 409 and reply.code == "memory_busy"
        assert reply.headers["retry-after"]
        assert client.memory("DELETE", "taken").code == "memory_busy"


def test_pages_of_other_origins_may_not_call(pair: Pair, client: Client) -> None:
    evil = {"Origin": "https://evil.example"}
    reply = client.request("POST", CHAT, HELLO, evil)
    assert reply.status == 403 and "access-control-allow-origin" not in reply.headers
    with Serving(
        *pair, "builtin", ServeSettings(port=0, allowed_origins=("https://app",))
    ) as other:
        asked = Client(other.url).request("POST", CHAT, HELLO, {"Origin": "https://app"})
        assert asked.headers["access-control-allow-origin"] == "https://app"
        assert Client(other.url).request("OPTIONS", CHAT).status == 204


def test_a_key_opens_every_route(pair: Pair) -> None:
    settings = ServeSettings(port=0, api_key="schlüssel")
    with Serving(*pair, "builtin", settings) as serving:
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
    with Serving(*pair, "builtin", ServeSettings(port=0, max_queue=1)) as serving:
        client = Client(serving.url)
        with serving.admitted():
            reply = client.chat("hi")
        assert reply.status == 429 and reply.code == "queue_full" and reply.headers["retry-after"]
        assert client.chat("hi").status == 200


def test_too_many_connections_are_closed(pair: Pair) -> None:
    with Serving(*pair, "builtin", ServeSettings(port=0, max_connections=1)) as serving:
        address = serving.http.server_address[:2]
        with socket.create_connection(address, timeout=10):
            time.sleep(0.1)
            with socket.create_connection(address, timeout=10) as second:
                assert second.makefile("rb").read().split()[1] == b"503"


def test_a_broken_batch_fails_its_requests_and_nothing_else(
    serving: Serving, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.chat("anna lives in oslo .", "survivor")
    with monkeypatch.context() as patch:
        patch.setattr(serving.generator._batch._sequences, "next", _out_of_memory)
        reply = client.chat("hi", "survivor")
    assert reply.status == 500 and "secret" not in reply.body.decode()
    assert client.memory("GET", "survivor").json["turns"] == 1
    assert client.chat("hi", "survivor").memory["turns"] == 2


def _out_of_memory() -> None:
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
    serving: Serving, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    client.chat("ben is a doctor .", "private-key")
    client.request("POST", CHAT, b'{"messages": "ben is a doctor"')
    metrics = client.request("GET", "/metrics").body.decode()
    assert 'deltamem_requests_total{method="POST",route="/v1/chat/completions"' in metrics
    assert 'deltamem_turns_total{outcome="kept"}' in metrics
    for line in metrics.splitlines():
        assert line.startswith("# ") or float(line.rsplit(" ", 1)[1]) >= 0
    fields = [str(vars(record)) for record in caplog.records if "deltamem" in record.name]
    assert any("written" in field for field in fields)
    assert not any("ben" in text or "private-key" in text for text in [metrics, *fields])


def test_shutdown_lets_answers_end_and_saves_them(pair: Pair, tmp_path: Path) -> None:
    settings = ServeSettings(port=0, memory_dir=tmp_path, max_tokens_limit=4000)
    replies = []
    with Serving(*pair, "builtin", settings) as serving:
        client = Client(serving.url)
        ends = {str(i): -100 for i in range(4)}
        asked = threading.Thread(
            target=lambda: replies.append(client.chat("hi", "last", max_tokens=60, logit_bias=ends))
        )
        asked.start()
        while not serving._busy:
            time.sleep(0.005)
    asked.join()
    assert replies[0].status == 200 and replies[0].json["usage"]["completion_tokens"] == 60
    assert len(list(tmp_path.iterdir())) == 1


def test_a_reply_with_tool_calls_is_recognised_as_the_client_sends_it_back() -> None:
    from mlx_lm.generate import TextStateMachine
    from mlx_lm.server import GenerationContext

    from deltamem_mlx.serve.history import History
    from deltamem_mlx.serve.reply import visible

    machine = TextStateMachine(
        {"normal": [("<call>", "tool"), ("<think>", "reasoning")],
         "tool": [("</call>", "normal")], "reasoning": [("</think>", "normal")]}
    )  # fmt: skip
    ctx = GenerationContext(True, True, lambda text, _: json.loads(text), machine, "normal", [])
    call = '{"name": "look", "arguments": {"city": "Oslo"}}'
    pieces = ["<think>hm</think>Let me", " see. ", f"<call>{call}</call>", ""]
    message = visible(ctx, pieces, stopped=True, tools=[])
    assert message["content"] == "Let me see. "
    sent = {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": [{"id": "1", "function": {"name": "look", "arguments": '{ "city":"Oslo" }'}}],
    }
    history = History.fresh()
    assert history.of([sent]) == history.of([message])
    assert history.of([sent | {"content": "Let me be."}]) != history.of([message])
