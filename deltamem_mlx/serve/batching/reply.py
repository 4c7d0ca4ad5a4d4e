"""A reply as the client sees it: without control sequences, tool calls apart."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from mlx_lm.server import GenerationContext, TextStateMachine, ToolCallFormatter

from ...text.messages import Message

ToolParser = Callable[[str, list | None], Any]  # mlx-lm's: of the text of a call


def visible(
    ctx: GenerationContext, pieces: Sequence[str], *, stopped: bool, tools: list | None
) -> Message:
    """The message that a client would send back of what was generated.

    Args:
        ctx (GenerationContext): Of the answer.
        pieces (Sequence[str]): Its text, response by response.
        stopped (bool): An end token or a stop word ended it; mlx-lm leaves out the last piece.
        tools (list): That the request offered.
    """
    state = ctx.text_sm.make_state(ctx.initial_state)
    state, segments = TextStateMachine.split(state, "".join(pieces[:-1] if stopped else pieces))
    if not stopped:
        state, rest, name = TextStateMachine.flush(state)
        segments.append((name, rest))
    said, calls, call = "", [], ""
    for name, text in [*segments, ("normal", "")]:
        if name == "tool":
            call += text
            continue
        calls += [call] if call else []
        call = ""
        said += text if name == "normal" else ""
    message = {"role": "assistant", "content": said}
    if calls:
        message["tool_calls"] = ToolCallFormatter(ctx.tool_parser, tools)(calls)
    return message


def checked_calls(parse: ToolParser) -> ToolParser:
    """The same, with calls that a client can make and send back; for all else a ValueError.

    That is what mlx-lm leaves out, with a line in the log, which is not to hold the text either.
    """

    def checked(text: str, tools: list | None) -> list[dict[str, object]]:
        try:
            found = parse(text, tools)
            return [_checked(call) for call in (found if isinstance(found, list) else [found])]
        except Exception as error:  # whatever a model may say
            raise ValueError(type(error).__name__) from None

    return checked


def _checked(call: object) -> dict[str, object]:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise ValueError("no call of a function")
    arguments = call.get("arguments")
    if isinstance(arguments, str) and arguments:
        arguments = json.loads(arguments)  # some models write them as JSON text
    arguments = {} if arguments is None or arguments == "" else arguments
    if not isinstance(arguments, dict):
        raise ValueError("arguments that are no object")
    own = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {"name": call["name"], "arguments": arguments, **own}
