"""Bodies of responses, conversations and messages with all kinds of values in all places."""

import copy
import json
from collections.abc import Iterator

import pytest
from serving import ANSWER, FACT, QUESTION, Client

ODD = (None, [], {}, "", "x", 0, -1, 1.5, 2**70, True, [[]], [{}], [None], ["x"], {"a": []},
       {"type": []}, {"type": "x"}, [{"type": []}], {"id": 1}, "\u0000", "x" * 600)  # fmt: skip
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
PART = {"type": "input_text", "text": FACT}
RESPONSE = {
    "model": "default_model", "instructions": "x", "max_output_tokens": 2, "temperature": 0,
    "top_p": 1, "store": False, "stream": False, "stream_options": {"include_obfuscation": True},
    "metadata": {"a": "b"}, "background": False, "truncation": "auto", "include": [],
    "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "tool_choice": "auto",
    "tools": [{"type": "function", "name": "f", "description": "d", "parameters": {}}],
    "conversation": {"id": "odd"}, "previous_response_id": None, "max_tool_calls": 1,
    "chat_template_kwargs": {}, "parallel_tool_calls": True, "memory": {"read_only": True},
    "input": [{"type": "message", "role": "user", "content": [PART]}, CALL,
              {"type": "function_call_output", "call_id": "c", "output": [PART]},
              {"type": "reasoning", "content": []}],
}  # fmt: skip
TEXT = {"type": "text", "text": FACT}
USE = {"type": "tool_use", "id": "c", "name": "f", "input": {}}
MESSAGE = {
    "model": "default_model", "system": [TEXT], "max_tokens": 2, "temperature": 0, "top_p": 1,
    "top_k": 1, "stream": False, "stop_sequences": ["never"], "thinking": {"type": "disabled"},
    "tools": [{"name": "f", "description": "d", "input_schema": {}}],
    "tool_choice": {"type": "auto"}, "metadata": {"user_id": "me"},
    "messages": [{"role": "user", "content": [TEXT]}, {"role": "assistant", "content": [TEXT, USE]},
                 {"role": "user", "content": [
                     {"type": "tool_result", "tool_use_id": "c", "content": [TEXT]}, TEXT]}],
}  # fmt: skip
CONVERSATION = {"metadata": {"a": "b"}, "items": RESPONSE["input"][:2]}
BODIES = {
    "/v1/responses": RESPONSE,
    "/v1/messages": MESSAGE,
    "/v1/messages/count_tokens": MESSAGE,
    "/v1/conversations": CONVERSATION,
}


def places(value: object, path: tuple = ()) -> Iterator[tuple]:
    """Where something lies in a body."""
    if path:
        yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, found in inner if isinstance(value, dict | list) else ():
        yield from (
            places(found, (*path, name)) if isinstance(found, dict | list) else [(*path, name)]
        )


def with_odd(body: dict, path: tuple, odd: object) -> dict:
    body = copy.deepcopy(body)
    at = body
    for name in path[:-1]:
        at = at[name]
    at[path[-1]] = odd
    return body


@pytest.mark.parametrize("one_in", [14, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("route", BODIES)
def test_whatever_a_field_holds_is_answered_or_refused(
    client: Client, route: str, one_in: int
) -> None:
    client.chat(FACT, "odd")
    body = BODIES[route]
    assert client.request("POST", route, body).status == 200
    refused = 0
    for n, path in enumerate(places(body)):
        for odd in ODD[n % one_in :: one_in]:
            reply = client.request("POST", route, with_odd(body, path, odd))
            assert reply.status in (200, 400, 404, 409), (path, odd, reply.body)
            if reply.status != 200:
                refused += 1
                assert json.loads(reply.body)["error"]["message"], (path, odd)
    assert refused > 50 / one_in
    assert ANSWER in client.chat(QUESTION, "odd", memory={"context": "drop"}).text
