"""Rows of training data: their forms, and what is wrong with those that have none."""

from collections.abc import Mapping
from typing import NamedTuple

from ..problems import Problem, first_few, kind_of, shortened
from .messages import Message, message_problems

ROLES = ("system", "user", "assistant", "tool")

EXPECTED = (
    'Each row needs "messages", or "prompt" and "completion" (or "response"), or "text" with '
    '"unrelated": true. A row of messages: '
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
)


class ConversationRow(NamedTuple):
    """One row: its messages, the tools it offers, and where it was found.

    ``unrelated`` are the places of the replies that have nothing to do with what came before: they
    are to be as without a memory. A row without messages is a running ``text``, all of which is.
    """

    messages: list[Message]
    tools: list[object] | None = None
    where: str = "a conversation"
    unrelated: frozenset[int] = frozenset()
    text: str = ""

    @property
    def related(self) -> bool:
        """Whether a reply has to do with what came before."""
        replies = {i for i, m in enumerate(self.messages) if m["role"] == "assistant"}
        return not replies <= self.unrelated


def conversation_of(
    row: object, where: str = "a conversation"
) -> tuple[ConversationRow | None, list[Problem]]:
    """A row in any of its forms as a conversation; or None, and what is wrong with it."""
    if not isinstance(row, Mapping):
        return None, [Problem("", TypeError, f"{kind_of(row)} (expected an object)")]
    if "text" in row and row.get("messages") is None and "prompt" not in row:
        return _running_text(row, where)
    messages, wrong = _messages_of(row)
    tools = row.get("tools") or None
    if not isinstance(tools, list | None):
        wrong = [*wrong, Problem("tools", TypeError, f"{kind_of(tools)} (expected a list)")]
    unrelated, more = _unrelated(row.get("unrelated"), messages)
    wrong = [*wrong, *more]
    return None if wrong else ConversationRow(messages, tools, where, unrelated), wrong


def _unrelated(value: object, messages: list[Message]) -> tuple[frozenset[int], list[Problem]]:
    """Which replies are marked as unrelated to their history: true is all of them."""
    replies = [i for i, message in enumerate(messages) if message.get("role") == "assistant"]
    if value is None or isinstance(value, bool):
        return frozenset(replies if value else ()), []
    if not isinstance(value, list):
        what = f"{kind_of(value)} (expected true, false or a list of numbers of replies)"
        return frozenset(), [Problem("unrelated", TypeError, what)]
    wrong = [
        Problem(
            f"unrelated[{i}]",
            ValueError,
            f"{shortened(place)} (expected the number, from 0, of a message that is a reply)",
        )
        for i, place in enumerate(value)
        if type(place) is not int or place not in replies
    ]
    return frozenset() if wrong else frozenset(value), wrong


def _messages_of(row: Mapping[str, object]) -> tuple[list[Message], list[Problem]]:
    if row.get("messages") is not None:
        messages = _without_nulls(row["messages"])
        return messages, message_problems(row["messages"]) or _role_problems(messages)
    if "prompt" in row:
        return _exchange(row)
    fields = ", ".join(first_few(list(map(str, row)), 10)) or "none"
    return [], [Problem("", ValueError, f"no messages, no prompt (its fields: {fields})")]


def _running_text(
    row: Mapping[str, object], where: str
) -> tuple[ConversationRow | None, list[Problem]]:
    """A text without turns: there is nothing to learn from it but to leave it as it is."""
    text, marked = row["text"], row.get("unrelated")
    if not isinstance(text, str):
        return None, [Problem("text", TypeError, f"{kind_of(text)} (expected text)")]
    if not text.strip():
        return None, [Problem("text", ValueError, "empty (expected text)")]
    if marked is not True:
        what = (
            "plain text has no turns: no history to remember and no reply to learn (with "
            '"unrelated": true a memory learns to leave such text as it is)'
        )
        return None, [Problem("text", ValueError, what)]
    return ConversationRow([], None, where, text=text), []


def _exchange(row: Mapping[str, object]) -> tuple[list[Message], list[Problem]]:
    replies = [field for field in ("completion", "response") if row.get(field) is not None]
    fields = {"user": "prompt", "assistant": [*replies, "completion"][0]}
    wrong = [
        Problem(
            field,
            TypeError,
            f"{kind_of(row[field]) if field in row else 'missing'} (expected text)",
        )
        for field in fields.values()
        if not isinstance(row.get(field), str)
    ]
    return [{"role": role, "content": row.get(field)} for role, field in fields.items()], wrong


def _without_nulls(messages: object) -> list[Message]:
    """Messages as templates expect them: tables fill absent fields in with nulls."""
    if not isinstance(messages, list):
        return []
    return [
        {key: value for key, value in message.items() if value is not None or key == "content"}
        for message in messages
        if isinstance(message, Mapping)
    ]


def _role_problems(messages: list[Message]) -> list[Problem]:
    roles = [message["role"] for message in messages]
    wrong = [
        Problem(f"messages[{i}].role", ValueError, f"{role!r} (expected {', '.join(ROLES)})")
        for i, role in enumerate(roles)
        if role not in ROLES
    ]
    if "assistant" not in roles and not wrong:
        wrong = [Problem("messages", ValueError, "no assistant message, so nothing to learn")]
    return wrong
