"""Rows of training data: their forms, and what is wrong with those that have none."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .messages import Problem, kind_of, message_problems

ROLES = ("system", "user", "assistant", "tool")

EXPECTED = (
    'Each row needs "messages", or "prompt" and "completion" (or "response"). A row of messages: '
    '{"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}'
)
_SHOWN_PROBLEMS = 10


class Conversation(NamedTuple):
    """One row: its messages, the tools it offers, and where it was found."""

    messages: list[dict[str, object]]
    tools: list[object] | None = None
    where: str = "a conversation"


def messages_of(row: object) -> tuple[list[dict[str, object]], list[Problem]]:
    """The messages of a row in any of its forms, and what is wrong with it."""
    if not isinstance(row, Mapping):
        return [], [Problem("", TypeError, f"{kind_of(row)} (expected an object)")]
    if row.get("messages") is not None:
        messages, wrong = _without_nulls(row["messages"]), _conversation_problems(row["messages"])
    elif "prompt" in row:
        messages, wrong = _exchange(row)
    elif "text" in row:
        what = "plain text has no turns: no history to remember and no reply to learn"
        messages, wrong = [], [Problem("text", ValueError, what)]
    else:
        what = f"no messages, no prompt (its fields: {', '.join(map(str, row)) or 'none'})"
        messages, wrong = [], [Problem("", ValueError, what)]
    if not isinstance(row.get("tools"), list | None):
        wrong.append(Problem("tools", TypeError, f"{kind_of(row['tools'])} (expected a list)"))
    return messages, wrong


def _exchange(row: Mapping[str, object]) -> tuple[list[dict[str, object]], list[Problem]]:
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


def _without_nulls(messages: object) -> list[dict[str, object]]:
    """Messages as templates expect them: tables fill absent fields in with nulls."""
    if not isinstance(messages, list):
        return []
    return [
        {key: value for key, value in message.items() if value is not None or key == "content"}
        for message in messages
        if isinstance(message, Mapping)
    ]


def _conversation_problems(messages: object) -> list[Problem]:
    problems = message_problems(messages)
    if problems:
        return problems
    roles = [message["role"] for message in messages]
    wrong = [
        Problem(f"messages[{i}].role", ValueError, f"{role!r} (expected {', '.join(ROLES)})")
        for i, role in enumerate(roles)
        if role not in ROLES
    ]
    if "assistant" not in roles and not wrong:
        wrong = [Problem("messages", ValueError, "no assistant message, so nothing to learn")]
    return wrong


def raise_problems(problems: Sequence[str], what: str, expected: str) -> None:
    """Raises one ValueError for all problems, the first ten shown; nothing if there are none."""
    if problems:
        shown = "\n".join(f"  {problem}" for problem in problems[:_SHOWN_PROBLEMS])
        rest = len(problems) - _SHOWN_PROBLEMS
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise ValueError(f"{what}:\n{shown}{more}\n{expected}".rstrip())
