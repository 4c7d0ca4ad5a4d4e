"""Messages made of blocks, as messages of a chat: what was said, called, and came of a call."""

import json
from collections.abc import Sequence
from typing import Any

from ..errors import refuse

_MOST_MESSAGES = 4096
_ROLES = ("user", "assistant", "system")
_THOUGHTS = ("thinking", "redacted_thinking")
Message = dict[str, Any]


def read_messages(given: object) -> list[Message]:
    """A request's messages as a chat's.

    What was thought is left out, as the model's own template does.

    Raises:
        ApiError: If there is a block that the model cannot be given, or nothing to answer.
    """
    if not isinstance(given, list) or not 0 < len(given) <= _MOST_MESSAGES:
        refuse("messages", f"a list of 1 to {_MOST_MESSAGES} messages")
    found: list[Message] = []
    for i, message in enumerate(given):
        found += _message(f"messages[{i}]", message)
    if [m["role"] for m in found if m["role"] != "system"][-1:] not in (["user"], ["tool"]):
        refuse("messages", "a last message of the user's: this server goes on with no beginning")
    return found


def read_text(where: str, given: object) -> str:
    """Text, or blocks of text."""
    if isinstance(given, str):
        return given
    return "".join(_text(f"{where}[{i}]", block) for i, block in enumerate(_list(where, given)))


def _message(where: str, message: object) -> list[Message]:
    if not isinstance(message, dict) or message.get("role") not in _ROLES:
        refuse(f"{where}.role", "user, assistant or system")
    content, where = message.get("content"), f"{where}.content"
    if isinstance(content, str):
        return [{"role": message["role"], "content": content}]
    if message["role"] == "system":
        return [{"role": "system", "content": read_text(where, content)}]
    blocks = _list(where, content)
    if message["role"] == "user":
        return _of_user(where, blocks)
    return _of_assistant(where, blocks)


def _of_user(where: str, blocks: Sequence[object]) -> list[Message]:
    """What came of calls is told before what the user says beside it."""
    results, said = [], []
    for i, block in enumerate(blocks):
        if isinstance(block, dict) and block.get("type") == "tool_result":
            results.append(_result(f"{where}[{i}]", block))
        else:
            said.append(_text(f"{where}[{i}]", block))
    if said or not results:
        return [*results, {"role": "user", "content": "".join(said)}]
    return results


def _result(where: str, block: Message) -> Message:
    id, content = block.get("tool_use_id"), block.get("content") or ""
    if not isinstance(id, str):
        refuse(f"{where}.tool_use_id", "text")
    return {"role": "tool", "tool_call_id": id, "content": read_text(f"{where}.content", content)}


def _of_assistant(where: str, blocks: Sequence[object]) -> list[Message]:
    said, calls = "", []
    for i, block in enumerate(blocks):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in _THOUGHTS:
            continue
        if kind == "tool_use" and isinstance(block, dict):
            calls.append(_call(f"{where}[{i}]", block))
        else:
            said += _text(f"{where}[{i}]", block)
    message: Message = {"role": "assistant", "content": said}
    return [message | {"tool_calls": calls} if calls else message]


def _call(where: str, block: Message) -> Message:
    id, name, given = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(id, str) or not isinstance(name, str) or not isinstance(given, dict):
        refuse(where, "a call with id, name and input, an object")
    function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
    return {"id": id, "type": "function", "function": function}


def _list(where: str, given: object) -> Sequence[object]:
    return given if isinstance(given, list) else refuse(where, "text, or a list of blocks")


def _text(where: str, block: object) -> str:
    if not isinstance(block, dict) or block.get("type") != "text":
        kinds = "text, tool_use or tool_result"
        refuse(f"{where}.type", f"{kinds}, where it belongs: this server takes nothing else")
    text = block.get("text")
    return text if isinstance(text, str) else refuse(f"{where}.text", "text")
