"""Items of the Responses API as messages of a chat: what was said, called, and came of a call."""

import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, cast

from ..errors import refuse

_MOST_ITEMS = 4096
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}
_TEXTS = ("input_text", "output_text", "text")
Item = dict[str, Any]


def new_id(kind: str) -> str:
    """An id that nothing had before, such as ``resp_...``."""
    return f"{kind}_{uuid.uuid4().hex}"


def read_items(given: object, name: str = "input") -> list[Item]:
    """What a client sends as input, checked: items with ids; a text is the user's message.

    Raises:
        ApiError: If an item is of a kind that the model cannot be given.
    """
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or len(given) > _MOST_ITEMS:
        refuse(name, f"text, or a list of at most {_MOST_ITEMS} items")
    return [_item(f"{name}[{i}]", item) for i, item in enumerate(given)]


def _item(where: str, item: object) -> Item:
    if not isinstance(item, dict):
        refuse(where, "an object")
    item = {key: value for key, value in item.items() if value is not None}
    kind = item.get("type", "message")
    match kind:
        case "message":
            found = _message(where, item)
        case "function_call":
            found = _call(where, item)
        case "function_call_output":
            call, output = _texts(where, item, "call_id"), item.get("output")
            text = output if isinstance(output, str) else _said(f"{where}.output", output)
            found = {**call, "output": text}
        case "reasoning":
            found = {"summary": [], "content": item.get("content", [])}
        case _:
            kinds = "message, function_call, function_call_output or reasoning"
            refuse(f"{where}.type", f"{kinds}: this server takes nothing else")
    id = item.get("id", new_id(_PREFIXES[kind]))
    if not isinstance(id, str) or not 0 < len(id) <= 128:
        refuse(f"{where}.id", "a text of 1 to 128 characters")
    return {"id": id, "type": kind, "status": "completed", **found}


_PREFIXES = {
    "message": "msg",
    "function_call": "fc",
    "function_call_output": "fco",
    "reasoning": "rs",
}


def _message(where: str, item: Mapping[str, object]) -> Item:
    role, content = item.get("role"), item.get("content")
    if not isinstance(role, str) or role not in _ROLES:
        refuse(f"{where}.role", ", ".join(_ROLES))
    text = content if isinstance(content, str) else _said(f"{where}.content", content)
    part: Item = {"type": "input_text", "text": text}
    if role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"role": role, "content": [part]}


def _said(where: str, parts: object) -> str:
    if not isinstance(parts, list) or not all(map(_is_text, parts)):
        refuse(where, "text, or parts of the types input_text and output_text")
    return "".join(part["text"] for part in parts)


def _is_text(part: object) -> bool:
    return (
        isinstance(part, dict) and part.get("type") in _TEXTS and isinstance(part.get("text"), str)
    )


def _call(where: str, item: Mapping[str, object]) -> Item:
    found = _texts(where, item, "call_id", "name", "arguments")
    try:
        arguments = json.loads(found["arguments"] or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        refuse(f"{where}.arguments", "an object as JSON text")
    return found


def _texts(where: str, item: Mapping[str, object], *names: str) -> dict[str, str]:
    for name in names:
        if not isinstance(item.get(name), str):
            refuse(f"{where}.{name}", "text")
    return {name: cast(str, item[name]) for name in names}


def as_messages(items: Sequence[Item]) -> list[dict[str, object]]:
    """Items that `read_items` gave, as a chat's messages.

    What an answer said and called are items of their own, and one message. What it thought is
    none: the model's template leaves earlier thoughts out.
    """
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for item in items:
        match item["type"]:
            case "message":
                text = "".join(part["text"] for part in item["content"])
                messages.append({"role": _ROLES[item["role"]], "content": text})
            case "function_call":
                names[item["call_id"]] = item["name"]
                if not messages or messages[-1]["role"] != "assistant":
                    messages.append({"role": "assistant", "content": ""})
                function = {"name": item["name"], "arguments": item["arguments"] or "{}"}
                call = {"id": item["call_id"], "type": "function", "function": function}
                messages[-1].setdefault("tool_calls", []).append(call)
            case "function_call_output":
                said = {"role": "tool", "content": item["output"], "tool_call_id": item["call_id"]}
                if item["call_id"] in names:
                    said["name"] = names[item["call_id"]]
                messages.append(said)
    return cast(list[dict[str, object]], messages)
