"""Bodies that the server refuses."""

from collections.abc import Iterator

import pytest
from serving import CHAT, HELLO, Client, builtin_pair

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    settings = ServeSettings(port=0, max_tokens_limit=3000, max_prompt_tokens=2000)
    with Server(*builtin_pair(), "builtin", settings) as serving:
        client = Client(serving.url)
        yield client
        assert client.chat("hi", max_tokens=1).status == 200  # after all of it


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
    "attention_state twice": changed(
        attention_state="a", attentionState="b", memory={"session": "a"}
    ),
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
    "a name twice": b'{"messages": [{"role": "user", "content": "hi"}], "n": 1, "n": 1}',
    "two sessions": b'{"messages": [{"role": "user", "content": "hi"}], '
    b'"memory": {"session": "a", "session": "b"}}',
    "deep": b'{"a":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
    "long number": b'{"max_tokens": ' + b"9" * 9000 + b"}",
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW.keys())
def test_a_body_that_is_no_json_object_is_refused(client: Client, raw: bytes) -> None:
    for path in (CHAT, "/v1/completions", "/v1/memories/a/fork"):
        reply = client.request("POST", path, raw)
        assert reply.status == 400 and reply.code == "bad_json"


def test_half_a_character_is_named_with_its_place(client: Client) -> None:
    reply = client.request("POST", CHAT, RAW["half a surrogate"])
    said = "messages[0].content holds half a character (U+D800) at character 1."
    assert reply.json["error"]["message"] == said


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
