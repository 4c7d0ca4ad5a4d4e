"""Thoughts and calls of tools in a message, as Anthropic's own accumulator reads its events."""

import json

import pytest
from anthropic.lib.streaming._messages import accumulate_event

from deltamem_mlx.serve.http.speaking import Piece, Used
from deltamem_mlx.serve.messages.events import MessageEvents

CALL = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": '{"at": "Oslo"}'}}
OTHER = {"type": "function", "id": "c2", "function": {"name": "look", "arguments": "{}"}}
ANSWERS = {
    "a text": ([Piece("os"), Piece("lo", finish="stop")], ["text"]),
    "nothing": ([Piece("", finish="stop")], ["text"]),
    "a thought": (
        [Piece("", "He asks"), Piece("\n", " where."), Piece("oslo", finish="stop")],
        ["thinking", "text"],
    ),
    "two calls": (
        [Piece("", "Look."), Piece("I look."), Piece("", calls=[CALL]), Piece("\n"),
         Piece("", calls=[OTHER], finish="tool_calls")],
        ["thinking", "text", "tool_use", "tool_use"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
def test_the_accumulator_comes_to_the_message_that_is_sent(name: str) -> None:
    pieces, kinds = ANSWERS[name]
    sent: list[dict] = []
    events = MessageEvents("msg_1", "m", lambda event: sent.append(json.loads(json.dumps(event))))
    events.begin(Used(3, 0, 1))
    for piece in pieces:
        events.hear(piece)
    events.complete("end_turn", None, Used(3, 2, 1), None)
    snapshot, buffers = None, {}
    for event in sent:
        snapshot = accumulate_event(event=event, current_snapshot=snapshot, json_bufs=buffers)
    found = snapshot.to_dict()
    assert found["content"] == events.message["content"]
    assert [block["type"] for block in found["content"]] == kinds
    assert found["usage"] == events.message["usage"] and found["stop_reason"] == "end_turn"
