"""Conversations as a chat template renders them, message by message.

Rendering knows nothing of spans; `spans` compares what successive renderings add.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from jinja2 import TemplateError

from ..problems import not_unicode
from .messages import Message


class Tokenizer(Protocol):
    """What is used of a tokenizer: mlx-lm's ``TokenizerWrapper`` and those of transformers fit."""

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: object) -> object: ...

    def encode(self, text: str, **kwargs: object) -> list[int]: ...


def merge_roles(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages of one role that follow each other as one, with a blank line between their texts.

    Calls and results of tools stay as they are.
    """
    merged: list[dict[str, object]] = []
    for message in messages:
        last = merged[-1] if merged else {}
        whole = message["role"] in ("system", "user", "assistant") and not message.get("tool_calls")
        if whole and last.get("role") == message["role"] and not last.get("tool_calls"):
            texts = filter(None, (str(last["content"]), str(message["content"])))
            merged[-1] = last | {"content": "\n\n".join(texts)}
        else:
            merged.append(dict(message))
    return merged


class Template:
    """A tokenizer's chat template with its settings.

    Args:
        tokenizer (Tokenizer): Whose template.
        kwargs (Mapping): Its settings.
        messages (Sequence[Message]): What is to be rendered. Where the template takes no messages
          of one role that follow each other, they are merged, and a warning says so.
    """

    def __init__(
        self, tokenizer: Tokenizer, kwargs: Mapping[str, object], messages: Sequence[Message] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._kwargs = dict(kwargs)
        self._merges = False
        if len(merge_roles(messages)) < len(messages) and not self._takes(messages):
            self._merges = True
            self._merges = self._takes(messages)
        if self._merges:
            warnings.warn(
                "The model's chat template takes no messages of one role that follow each other: "
                "they are merged, with a blank line between them.",
                stacklevel=2,
            )

    def _takes(self, messages: Sequence[Message]) -> bool:
        try:
            self.render(messages, False)
        except TemplateError:
            return False
        return True

    def render(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        """The text of a conversation; jinja2's TemplateError if the template refuses it."""
        try:
            text = self._tokenizer.apply_chat_template(
                merge_roles(messages) if self._merges else messages,
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
        return str(text)

    def encode(self, text: str) -> list[int]:
        """The token ids of a text, without those that open one."""
        if why := not_unicode(text):  # from the template or its settings
            raise ValueError(f"The rendered conversation {why}; expected Unicode text.")
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
