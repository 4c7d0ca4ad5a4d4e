"""Calls of tools that a model makes: those that can be, and what it says instead of them."""

import json

import pytest
from mlx_lm.server import ToolCallFormatter
from mlx_lm.tokenizer_utils import TokenizerWrapper
from serving import FACT, Client

from deltamem_mlx.serve.batching import batch
from deltamem_mlx.serve.batching.reply import checked_calls, visible

GOOD = {
    "as JSON text": ('{"name": "look", "arguments": "{\\"city\\": \\"Oslo\\"}"}', {"city": "Oslo"}),
    "an empty text": ('{"name": "look", "arguments": ""}', {}),
    "null": ('{"name": "look", "arguments": null}', {}),
    "none": ('{"name": "look"}', {}),
    "an id that is none": ('{"name": "look", "arguments": {}, "id": 7, "x": 1}', {}),
}
BAD = {
    "no object": "[1]",
    "text": '"look"',
    "a number": "7",
    "no name": '{"arguments": {}}',
    "a name that is none": '{"name": 7, "arguments": {}}',
    "a list": '{"name": "look", "arguments": [1]}',
    "text that is no JSON": '{"name": "look", "arguments": "{"}',
    "a text in JSON text": '{"name": "look", "arguments": "\\"x\\""}',
    "cut off": '{"name": "lo',
    "one of two": '[{"name": "look", "arguments": {}}, null]',
    "too deep": "[" * 100_000,
}


def parse(text: str, _: object) -> object:
    return json.loads(text)


@pytest.mark.parametrize(("text", "arguments"), GOOD.values(), ids=GOOD)
def test_a_models_call_is_one_that_can_be_sent_back(text: str, arguments: dict) -> None:
    (call,) = ToolCallFormatter(checked_calls(parse), [])([text])
    assert set(call) == {"function", "type", "id"} and isinstance(call["id"], str)
    assert call["function"]["name"] == "look" and set(call["function"]) == {"name", "arguments"}
    assert json.loads(call["function"]["arguments"]) == arguments


@pytest.mark.parametrize("text", BAD.values(), ids=BAD)
def test_what_is_no_call_is_left_out_and_its_text_is_in_no_log(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    good = '{"name": "look", "arguments": {}, "id": "mine"}'
    (call,) = ToolCallFormatter(checked_calls(parse), [])([text, good])
    assert call["id"] == "mine"
    assert "look" not in caplog.text
    with pytest.raises(ValueError):
        checked_calls(parse)(text, None)


@pytest.mark.parametrize("said", ['{"name": "f"}', "[1]", '"f"', '{"name": "f", "arguments": "7"}'])
def test_a_call_that_is_none_ends_no_turn(
    client: Client, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    def calling(*args: object, **kwargs: object) -> object:
        """The reply, as if the model had ended it with this call."""
        ctx = args[0]
        found = visible(*args, **kwargs)
        return found | {"tool_calls": ToolCallFormatter(ctx.tool_parser, None)([said])}

    monkeypatch.setattr(TokenizerWrapper, "tool_parser", property(lambda _: parse))
    monkeypatch.setattr(batch, "visible", calling)
    reply = client.chat(FACT, f"calls {said}", tools=[])
    assert reply.status == 200 and reply.memory["turns"] == 1
