"""Messages: what is wrong with those that are none, and the form that chat templates expect."""

from collections.abc import Mapping, Sequence
from typing import cast

from ..files import parse_json
from ..problems import Problem, first_few, kind_of, unusable_parts

Message = Mapping[str, object]


def check_messages(messages: object) -> None:
    """Raises TypeError or ValueError, listing everything wrong, unless these are messages."""
    problems = message_problems(messages)
    if problems:
        shown = first_few([f"{problem.field}: {problem.what}" for problem in problems], 10)
        lines = "\n  ".join(shown)
        raise problems[0].error(
            f"These messages cannot be used:\n  {lines}\n"
            'Give a list of {"role": "user", "content": "text"}, as in mlx-lm.'
        )


def message_problems(messages: object) -> list[Problem]:
    """Everything wrong with a list of messages. Roles are the template's affair."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes):
        return [Problem("messages", TypeError, f"{kind_of(messages)} (expected a list)")]
    if not messages:
        return [Problem("messages", ValueError, "empty (expected at least one message)")]
    return [
        problem._replace(field=f"messages[{index}]{problem.field}")
        for index, message in enumerate(messages)
        for problem in _problems_of_one(message)
    ]


def _problems_of_one(message: object) -> list[Problem]:
    if not isinstance(message, Mapping):
        return [Problem("", TypeError, f"{kind_of(message)} (expected an object)")]
    problems = [
        Problem(f".{field}", ValueError, "missing (expected text)")
        if field not in message
        else Problem(f".{field}", TypeError, f"{kind_of(message[field])} (expected text)")
        for field in ("role", "content")
        if not isinstance(message.get(field), str)
    ]
    # A reply that only calls tools has no text.
    if message.get("tool_calls") and message.get("content") is None:
        problems = [problem for problem in problems if problem.field != ".content"]
    problems += _problems_of_calls(message.get("tool_calls") or [])
    return problems + [Problem(f, ValueError, why) for f, why in unusable_parts(message)]


def _problems_of_calls(calls: object) -> list[Problem]:
    if not isinstance(calls, list | tuple):
        return [Problem(".tool_calls", TypeError, f"{kind_of(calls)} (expected a list)")]
    problems = []
    for i, call in enumerate(calls):
        try:
            _with_arguments(call)
        except (TypeError, ValueError) as error:
            problems.append(Problem(f".tool_calls[{i}]", type(error), str(error)))
    return problems


def template_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages as chat templates expect them, which mlx-lm's server makes of OpenAI's form.

    The arguments of tool calls, there a text with JSON in it, are objects: templates write them as
    JSON. A reply that only calls tools has an empty text, not null. New messages; the given ones
    are not changed.
    """
    found = []
    for message in messages:
        new = dict(message) | {"content": message.get("content") or ""}
        if calls := message.get("tool_calls"):
            new["tool_calls"] = [_with_arguments(call) for call in cast(Sequence[object], calls)]
        found.append(new)
    return found


def _with_arguments(call: object) -> dict[str, object]:
    """A tool call, its arguments as an object.

    Raises TypeError or ValueError, with a phrase, if it is none.
    """
    if not isinstance(call, Mapping):
        raise TypeError(f"{kind_of(call)} (expected an object)")
    function = call.get("function", call)
    if not isinstance(function, Mapping):
        raise TypeError(f"function: {kind_of(function)} (expected an object)")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        arguments = parse_json(arguments) if arguments.strip() else {}
    if not isinstance(arguments, Mapping | None):
        raise TypeError(f"arguments: {kind_of(arguments)} (expected an object, or one as JSON)")
    known = {} if arguments is None else {"arguments": arguments}
    if "function" in call:
        return {**call, "function": {**function, **known}}
    return {**call, **known}
