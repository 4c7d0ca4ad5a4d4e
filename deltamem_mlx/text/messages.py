"""Conversations as a chat template renders them, and what is wrong with those it cannot.

Rendering knows nothing of spans; `spans` compares what successive renderings add.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from jinja2 import TemplateError

from ..problems import Problem, first_few, kind_of

Message = Mapping[str, object]


class Tokenizer(Protocol):
    """What is used of a tokenizer: mlx-lm's ``TokenizerWrapper`` and those of transformers fit."""

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: object) -> object: ...

    def encode(self, text: str, **kwargs: object) -> list[int]: ...


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
    return problems


class Template:
    """A tokenizer's chat template with its settings."""

    def __init__(self, tokenizer: Tokenizer, kwargs: dict[str, object]) -> None:
        self._tokenizer = tokenizer
        self._kwargs = kwargs

    def render(self, messages: list[dict[str, object]], add_generation_prompt: bool) -> str:
        try:
            return self._tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                **self._kwargs,
            )
        except ValueError as error:
            if getattr(self._tokenizer, "chat_template", None) is not None:
                raise
            raise ValueError(
                "The tokenizer has no chat template, so messages cannot be rendered. Expected that "
                "of a chat (instruct) model: load such a model, or set tokenizer.chat_template."
            ) from error

    def encode(self, text: str) -> list[int]:
        # verbose: transformers would warn of texts longer than the model's context.
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))


Step = tuple[int, bool]  # how many messages; whether the generation prompt follows


def renders(
    template: Template, messages: list[dict[str, object]], steps: list[Step]
) -> Iterator[tuple[Step, list[int]]]:
    """Yields (step, token ids of the conversation up to there) for every step that renders."""
    pieces = _pieces(template, messages, steps)
    if pieces is None:
        for step in steps:
            text = _text(template, messages, step)
            if text is not None:
                yield step, template.encode(text)
        return
    token_ids: list[int] = []
    for step, piece in pieces:
        token_ids = token_ids + piece
        yield step, token_ids


def _pieces(
    template: Template, messages: list[dict[str, object]], steps: list[Step]
) -> list[tuple[Step, list[int]]] | None:
    """The tokens that every step adds, tokenized by themselves.

    Saves tokenizing a conversation as often as it has messages. None if it is not exact: the text
    does not just grow, or tokens reach from one piece into the next.
    """
    pieces: list[tuple[Step, str]] = []
    before = ""
    for step in steps:
        text = _text(template, messages, step)
        if text is None:
            continue
        if not text.startswith(before):
            return None
        pieces.append((step, text[len(before) :]))
        before = text
    whole = template.encode(before)
    later = [(step, template.encode(piece)) for step, piece in pieces[1:]]
    start = len(whole) - sum(len(piece) for _, piece in later)
    joined = [token for _, piece in later for token in piece]
    if start < 0 or whole[start:] != joined:
        return None
    return [(step, whole[:start]) for step, _ in pieces[:1]] + later


def _text(template: Template, messages: list[dict[str, object]], step: Step) -> str | None:
    count, add_generation_prompt = step
    try:
        return template.render(messages[:count], add_generation_prompt)
    except TemplateError as error:
        if count < len(messages):
            return None
        roles = ", ".join(str(message["role"]) for message in messages[:12])
        raise ValueError(
            f"The chat template refuses this conversation: {error}. Its roles: "
            f"{roles}{', ...' if count > 12 else ''}. Reorder or merge the messages as the "
            "template expects, or set another tokenizer.chat_template."
        ) from error
