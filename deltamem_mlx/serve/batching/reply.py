"""A reply as the client sees it: without control sequences, tool calls apart."""

from collections.abc import Sequence

from mlx_lm.server import GenerationContext, TextStateMachine, ToolCallFormatter

from ...text.messages import Message


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
