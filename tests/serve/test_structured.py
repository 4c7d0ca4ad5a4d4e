"""Answers of a form: JSON, JSON of a schema, and calls of tools that have to be made."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jsonschema
import pytest
from anthropic import Anthropic
from byte_model import TEMPLATE, VOCABULARY, byte_pair
from openai import OpenAI
from pydantic import BaseModel
from serving import CHAT, Client, Pair, builtin_pair, user
from tiny import tiny_model

from deltamem_mlx.serve.grammars import compiling
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings


class Person(BaseModel):
    name: str
    age: int
    mood: Literal["good", "schlecht", "так себе"]


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": -5, "maximum": 130},
        "mood": {"enum": ["good", "schlecht", "так себе", "🗝", None, 1.5]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}
NODE = {
    "type": "object",
    "properties": {
        "at": {"type": "integer", "minimum": 0, "maximum": 9},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}, {"const": "end"}]},
    },
    "required": ["at", "next"],
    "additionalProperties": False,
}
SCHEMAS = {
    "enum": PERSON,
    "nested": {
        "type": "object",
        "properties": {"a": {"type": "object", "properties": {"b": PERSON}, "required": ["b"],
                             "additionalProperties": False}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "array": {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    "optional": {
        "type": "object",
        "properties": {"a": {"type": "boolean"}, "b": {"type": ["integer", "null"]}},
        "additionalProperties": False,
    },
    "text": {"type": "string", "minLength": 3, "maxLength": 12},
    "pattern": {"type": "string", "pattern": "^[äöü]{2,3}-[0-9]{4}$"},
    "format": {"type": "string", "format": "date"},
    "number": {"type": "number", "minimum": -1, "exclusiveMaximum": 2.5},
    "recursive": NODE,
    "choice": {"anyOf": [{"const": "ja"}, {"type": "null"}, PERSON]},
    "defined": {
        "$defs": {"x": {"enum": ["a", "b"]}},
        "type": "array",
        "items": {"$ref": "#/$defs/x"},
        "minItems": 1,
        "maxItems": 3,
    },
}  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "look", "parameters": PERSON}},
    {"type": "function", "function": {"name": 'go "там"', "parameters": {}}},
]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema is tried out in a process of its own, for whose start a busy machine takes long."""
    monkeypatch.setattr(compiling, "_PATIENCE", 60.0)


def asks(schema: object) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return byte_pair(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def serving(pair: Pair) -> Iterator[Server]:
    with Server(*pair, "bytes", ServeSettings(port=0, temp=1.5, max_tokens=1200)) as serving:
        yield serving


@pytest.fixture(scope="module")
def client(serving: Server) -> Client:
    return Client(serving.url)


@pytest.fixture(scope="module")
def openai(serving: Server) -> OpenAI:
    return OpenAI(base_url=f"{serving.url}/v1", api_key="any", max_retries=0)


def ask(client: Client, schema: object, **body: object) -> tuple[str, str]:
    """What is said, and why it ends."""
    reply = client.chat("hi", response_format=asks(schema), **{"max_tokens": 1200} | body)
    assert reply.status == 200, reply.body
    return reply.text, reply.json["choices"][0]["finish_reason"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_at_a_high_temperature_an_answer_still_fits_its_schema(name: str, client: Client) -> None:
    text, why = ask(client, SCHEMAS[name], seed=1)
    assert why == "stop"
    jsonschema.validate(json.loads(text), SCHEMAS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_a_hundred_answers_fit_their_schema(name: str, client: Client) -> None:
    for seed in range(100):
        text, why = ask(client, SCHEMAS[name], seed=seed)
        assert why == "stop"
        jsonschema.validate(json.loads(text), SCHEMAS[name])


PENALTIES = [
    {"presence_penalty": 1e300},
    {"repetition_penalty": 1e-300},
    {"logit_bias": {str(i): -9e8 for i in range(300)}},
]


@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: next(iter(penalty)))
def test_no_penalty_or_bias_leads_out_of_a_schema(penalty: dict, client: Client) -> None:
    text, why = ask(client, SCHEMAS["pattern"], **penalty)
    assert why == "stop"
    jsonschema.validate(json.loads(text), SCHEMAS["pattern"])


def test_a_json_object_is_one(client: Client) -> None:
    few = {str(i): -100 for i in range(3, 420)} | {"94": 5, "96": 9}  # braces, hardly else
    reply = client.chat("hi", response_format={"type": "json_object"}, logit_bias=few)
    assert json.loads(reply.text) == {}


def test_the_official_client_parses_chats(openai: OpenAI) -> None:
    asked = {"model": "default_model", "messages": [user("who?")], "response_format": Person}
    said = openai.chat.completions.parse(**asked, extra_body={"logit_bias": {"5": 8}})
    assert isinstance(said.choices[0].message.parsed, Person)
    with openai.chat.completions.stream(**asked, logit_bias={"5": 8}) as stream:
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, Person)


def test_the_official_client_parses_responses(openai: OpenAI) -> None:
    asked = {"model": "default_model", "input": "who?", "text_format": Person, "store": False}
    bias = {"logit_bias": {"5": 8}}
    assert isinstance(openai.responses.parse(**asked, extra_body=bias).output_parsed, Person)
    with openai.responses.stream(**asked, extra_body=bias) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)


def test_an_answer_that_runs_out_of_tokens_says_so(client: Client) -> None:
    text, why = ask(client, {"type": "string", "minLength": 400}, max_tokens=9)
    assert why == "length" and text.startswith('"')


def test_a_stop_word_ends_an_answer_within_its_schema(client: Client) -> None:
    text, why = ask(client, {"const": {"a": 1, "b": 2}}, stop=["b"])
    assert why == "stop" and json.loads(text.rstrip(' \n\t,"') + "}") == {"a": 1}


def test_a_memory_is_told_an_answer_of_a_schema_as_any_other(client: Client) -> None:
    first = client.chat("hi", "m", response_format=asks(SCHEMAS["pattern"]))
    again = client.chat([user("hi"), {"role": "assistant", "content": first.text}, user("go on")],
                        "m", response_format=asks({"enum": ["ja", "nein"]}))  # fmt: skip
    assert again.memory["messages_known"] == 2 and json.loads(again.text) in ("ja", "nein")


def test_thoughts_come_before_an_answer_and_are_free(tmp_path: Path) -> None:
    begin, end = 422, 423
    with Server(*byte_pair(tmp_path, thinks=True), "thinks", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        for prompted in (True, False):
            asked = {
                "response_format": asks({"enum": ["ja", "nein"]}),
                "chat_template_kwargs": {"enable_thinking": prompted},
                "temperature": 1.0,
                "logit_bias": {str(end): 4, str(begin): -100 if prompted else 6, "420": -100},
                "seed": 1,
            }
            message = client.chat("hi", **asked, max_tokens=1200).json["choices"][0]["message"]
            assert json.loads(message["content"]) in ("ja", "nein")
            assert message["reasoning"]


def test_those_who_are_answered_meanwhile_are_answered_as_alone(client: Client) -> None:
    import threading

    plain = {"messages": [user("hi there")], "max_tokens": 60, "temperature": 0}
    alone = client.request("POST", CHAT, plain).text
    replies = []
    threads = [
        threading.Thread(target=lambda: replies.append(client.request("POST", CHAT, plain).text)),
        threading.Thread(target=lambda: ask(client, PERSON)),
        threading.Thread(target=lambda: ask(client, NODE)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert replies == [alone]


UNUSABLE = [
    {"type": "strin"}, {"type": "string", "format": "nope"}, {"pattern": "(?=a)b"}, {"not": {}},
    {"$ref": "http://a/b"}, {"$ref": "#/nowhere"}, {"$ref": "#"}, {"enum": []},
    {"type": "integer", "minimum": 5, "maximum": 3}, {"uniqueItems": True, "type": "array"},
    {"const": "x" * 40_000},
]  # fmt: skip


@pytest.mark.parametrize("schema", UNUSABLE, ids=lambda schema: json.dumps(schema)[:30])
def test_a_schema_that_cannot_be_followed_is_refused_with_the_reason(
    schema: dict, client: Client
) -> None:
    reply = client.chat("hi", response_format=asks(schema))
    assert reply.status == 400 and reply.json["error"]["param"] == "response_format"
    assert len(reply.json["error"]["message"]) < 400


def test_a_schema_that_takes_for_ever_is_refused_and_stops_nobody(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "_PATIENCE", 0.5)
    endless = {"allOf": [{"type": "string", "pattern": f".*a.{{{i}}}"} for i in range(40)]}
    reply = client.chat("hi", response_format=asks(endless))
    assert reply.status == 400 and "too long" in reply.json["error"]["message"]
    assert client.chat("hi", max_tokens=2).status == 200


FORMATS = [
    {"type": "json_schema"}, {"type": "json_schema", "json_schema": {}}, {"type": "grammar"},
    {"type": "json_schema", "json_schema": {"schema": []}}, {}, [], "json_object",
    {"type": "json_schema", "json_schema": {"schema": {}, "strict": 1}},
]  # fmt: skip


@pytest.mark.parametrize("given", FORMATS, ids=json.dumps)
def test_a_format_that_is_none_is_refused_by_its_name(given: object, client: Client) -> None:
    reply = client.chat("hi", response_format=given)
    assert reply.status == 400
    assert reply.json["error"]["param"].startswith("response_format")
    asked = {"input": "hi", "text": {"format": given}}
    reply = client.request("POST", "/v1/responses", asked)
    assert reply.status == 400 and reply.json["error"]["param"].startswith("text.format")


def calls_in(reply: dict) -> list[tuple[str, object]]:
    made = reply["choices"][0]["message"]["tool_calls"]
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in made]


def test_tools_that_are_required_are_called(client: Client) -> None:
    reply = client.chat("hi", tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False,
                        max_tokens=1200).json  # fmt: skip
    assert reply["choices"][0]["finish_reason"] == "tool_calls"
    ((name, arguments),) = calls_in(reply)
    assert name == "look"
    jsonschema.validate(arguments, PERSON)


def test_a_tool_that_is_named_is_called_once(openai: OpenAI, serving: Server) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    asked = {"model": "default_model", "messages": [user("hi")], "tools": TOOLS}
    with openai.chat.completions.stream(**asked, tool_choice=named) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls
    jsonschema.validate(json.loads(call.function.arguments), PERSON)
    flat = [{"type": "function"} | tool["function"] for tool in TOOLS]
    said = openai.responses.create(
        model="default_model", input="hi", tools=flat, store=False,
        tool_choice={"type": "function", "name": "look"},
    )  # fmt: skip
    (item,) = said.output
    jsonschema.validate(json.loads(item.arguments), PERSON)
    anthropic = Anthropic(base_url=serving.url, api_key="any", max_retries=0)
    said = anthropic.messages.create(
        model="default_model", max_tokens=1200, messages=[user("hi")],
        tools=[{"name": "look", "input_schema": PERSON}],
        tool_choice={"type": "tool", "name": "look"},
    )  # fmt: skip
    assert said.stop_reason == "tool_use"
    jsonschema.validate(said.content[0].input, PERSON)


def test_anthropics_client_parses_an_answer_of_a_model(serving: Server) -> None:
    class Tall(BaseModel):
        name: Literal["anna", "ben"]
        tall: bool

    client = Anthropic(base_url=serving.url, api_key="any", max_retries=0)
    asked = {"model": "default_model", "max_tokens": 1200, "messages": [user("hi")]}
    assert client.messages.parse(**asked, output_format=Tall).parsed_output.name
    with client.messages.stream(**asked, output_format=Tall) as stream:
        assert stream.get_final_message().parsed_output.name


def test_beside_tools_an_answer_of_a_schema_is_that_or_a_call(client: Client) -> None:
    for bias in (-100, 100):
        asked = {"tools": TOOLS[:1], "logit_bias": {"420": bias}, "max_tokens": 300}
        reply = client.chat("hi", response_format=asks({"const": "ja"}), **asked)
        message = reply.json["choices"][0]["message"]
        assert message.get("tool_calls") if bias > 0 else json.loads(message["content"]) == "ja"


CHOICES = [
    "any", 1, {}, {"type": "function"}, {"type": "function", "function": {"name": "nope"}},
    "required",
]  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES, ids=json.dumps)
def test_a_choice_of_tools_that_are_not_there_is_refused(choice: object, client: Client) -> None:
    tools = [] if choice == "required" else TOOLS
    reply = client.chat("hi", tools=tools, tool_choice=choice)
    assert reply.status == 400 and reply.json["error"]["param"] == "tool_choice"


def test_a_model_whose_tokens_or_calls_are_of_another_kind_says_so(tmp_path: Path) -> None:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        reply = client.chat("hi", response_format={"type": "json_object"})
        assert reply.status == 400 and "tokens" in reply.json["error"]["message"]
        reply = client.chat("hi", tools=TOOLS, tool_choice="required")
        assert reply.status == 400 and "no tools" in reply.json["error"]["message"]
    other = byte_pair(tmp_path, template=TEMPLATE + "{# [TOOL_CALLS] #}")
    with Server(*other, "other", ServeSettings(port=0)) as serving:
        reply = Client(serving.url).chat("hi", tools=TOOLS, tool_choice="required")
        assert reply.status == 400 and "another form" in reply.json["error"]["message"]


def test_without_the_library_it_is_named_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)  # an import of it fails
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as serving:
        client = Client(serving.url)
        for asked in ({"response_format": {"type": "json_object"}}, {"response_format": asks({})}):
            reply = client.chat("hi", **asked)
            assert reply.status == 400
            assert "pip install 'deltamem-mlx[structured]'" in reply.json["error"]["message"]
        assert client.chat("hi").status == 200


def test_with_a_draft_model_answers_fit_their_schema_too(pair: Pair) -> None:
    draft = tiny_model(seed=3, vocab_size=VOCABULARY)
    settings = ServeSettings(port=0, temp=1.0)
    with Server(*pair, "bytes", settings, draft) as serving:
        client = Client(serving.url)
        for name in ("enum", "pattern", "recursive"):
            text, why = ask(client, SCHEMAS[name])
            assert why == "stop"
            jsonschema.validate(json.loads(text), SCHEMAS[name])
