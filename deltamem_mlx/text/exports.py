"""What other programs export: ChatGPT's conversations, mem0's memories; as messages."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from .messages import Message

_SAID = ("user", "assistant")


def exported_messages(value: object) -> list[Message] | None:
    """The messages that a value of an export stands for; None: it is no export's.

    Args:
        value (object): A conversation of ChatGPT's ``conversations.json``: what was said on the way
          to its present end, texts only; a memory of mem0's (``{"memory": "text", ...}``), which
          the user tells; or mem0's list of them (``{"results": [...]}``), the oldest first.
    """
    if not isinstance(value, Mapping):
        return None
    if isinstance(value.get("mapping"), Mapping):
        return list(_conversation(cast(Mapping[str, object], value)))
    if "role" not in value and isinstance(value.get("memory"), str):
        return [_told(value["memory"])]
    listed = value.get("results", value.get("memories"))
    if isinstance(listed, list) and listed and all(map(_is_memory, listed)):
        oldest_first = sorted(listed, key=lambda memory: str(memory.get("created_at") or ""))
        return [_told(memory["memory"]) for memory in oldest_first]
    return None


def _is_memory(value: object) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("memory"), str)


def _told(text: str) -> Message:
    return {"role": "user", "content": text}


def _conversation(exported: Mapping[str, object]) -> Iterator[Message]:
    nodes = cast(Mapping[str, Any], exported["mapping"])
    for key in _way_to_the_end(nodes, exported.get("current_node")):
        message = nodes[key].get("message")
        if not isinstance(message, Mapping):
            continue
        author, content = message.get("author"), message.get("content")
        role = author.get("role") if isinstance(author, Mapping) else None
        parts = content.get("parts") if isinstance(content, Mapping) else None
        if role in _SAID and isinstance(parts, Sequence):
            text = "\n".join(part for part in parts if isinstance(part, str)).strip()
            if text:
                yield {"role": role, "content": text}


def _way_to_the_end(nodes: Mapping[str, Any], end: object) -> list[str]:
    """Keys from the first node to the present end; by default the last that is listed."""
    way: list[str] = []
    key = end if end in nodes else next(reversed(list(nodes)), None)
    while isinstance(key, str) and isinstance(nodes.get(key), Mapping) and key not in way:
        way.append(key)
        key = nodes[key].get("parent")
    return way[::-1]
