"""Thoughts and calls of tools in a response, as OpenAI's own accumulator reads its events."""

import json

import pytest
from openai import Omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import Response, ResponseStreamEvent

from deltamem_mlx.serve.errors import ApiError
from deltamem_mlx.serve.http.speaking import Piece, Used
from deltamem_mlx.serve.responses.events import ResponseEvents

CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"at": "Oslo"}'}}
OTHER = {"type": "function", "id": "c2", "function": {"name": "look", "arguments": "{}"}}
ANSWERS = {
    "a text": ([Piece("os"), Piece("lo", finish="stop")], ["message"]),
    "nothing": ([Piece("", finish="stop")], ["message"]),
    "white space": ([Piece("\n"), Piece("", finish="stop")], ["message"]),
    "a thought": (
        [Piece("", "He asks"), Piece("\n", " where."), Piece("oslo", finish="stop")],
        ["reasoning", "message"],
    ),
    "only a thought": ([Piece("", "He", finish="length")], ["reasoning", "message"]),
    "a call": ([Piece("\n", calls=[CALL], finish="tool_calls")], ["function_call"]),
    "two calls": (
        [Piece("", "Look."), Piece("I look."), Piece("", calls=[CALL]), Piece("\n"),
         Piece("", calls=[OTHER], finish="tool_calls")],
        ["reasoning", "message", "function_call", "function_call"],
    ),
}  # fmt: skip


def told(pieces: list[Piece]) -> tuple[list[dict], dict]:
    """The events of an answer, each as it is when it is sent, and the response."""
    sent: list[dict] = []
    about = {"id": "resp_1", "model": "m", "tools": [], "tool_choice": "auto"}
    events = ResponseEvents(about, lambda event: sent.append(json.loads(json.dumps(event))))
    events.begin()
    for piece in pieces:
        events.hear(piece)
    events.complete(pieces[-1].finish, Used(3, 2, 1), None)
    events.finished()
    return sent, events.response


@pytest.mark.parametrize("name", ANSWERS)
def test_the_accumulator_comes_to_the_response_that_is_sent(name: str) -> None:
    pieces, kinds = ANSWERS[name]
    sent, response = told(pieces)
    state = ResponseStreamState(input_tools=Omit(), text_format=Omit())
    for event in sent:
        state.handle_event(construct_type(type_=ResponseStreamEvent, value=event))
    done = [event["item"] for event in sent if event["type"] == "response.output_item.done"]
    assert done == response["output"] == sent[-1]["response"]["output"]
    assert [item["type"] for item in done] == kinds
    for event in sent:
        if event["type"].endswith(".delta"):
            item = done[event["output_index"]]
            assert event["item_id"] == item["id"]
            whole = item["arguments"] if "arguments" in item else item["content"][0]["text"]
            deltas = [
                one["delta"]
                for one in sent
                if one["type"] == event["type"] and one["item_id"] == item["id"]
            ]
            assert "".join(deltas) == whole
    final = construct_type(type_=Response, value=response)
    assert [event["sequence_number"] for event in sent] == list(range(len(sent)))
    assert final.output_text.strip() == "".join(piece.text for piece in pieces).strip()


def test_an_answer_that_breaks_off_says_so_in_its_stream() -> None:
    sent: list[dict] = []
    events = ResponseEvents({"id": "resp_1"}, sent.append)
    events.begin()
    events.hear(Piece("os"))
    events.fail(ApiError(503, "The server is shutting down.", code="stopping"))
    assert [event["type"] for event in sent[-2:]] == ["error", "response.failed"]
    assert sent[-2]["code"] == "stopping" and sent[-2]["message"]
    assert events.response["status"] == "failed" and events.response["error"]["message"]
