"""Conversations as a chat template renders them, message by message.

Rendering knows nothing of spans; `spans` compares what successive renderings add.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Protocol

from jinja2 import TemplateError

from ..problems import not_unicode
from .messages import Message


class Tokenizer(Protocol):
    """What is used of a tokenizer: mlx-lm's ``TokenizerWrapper`` and those of transformers fit."""

    def apply_chat_template(self, conversation: Sequence[Message], **kwargs: object) -> object: ...

    def encode(self, text: str, **kwargs: object) -> list[int]: ...


def first_tokens(tokenizer: Tokenizer) -> list[int]:
    """What every context begins with, a text's too: a token of its own, in models that have one."""
    begin = getattr(tokenizer, "bos_token_id", None)
    return [token for token in tokenizer.encode("") if token == begin]


def merge_roles(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Messages of one role that follow each other as one, with a blank line between their texts.

    Calls and results of tools stay as they are.
    """
    merged = []
    for (role, _), group in groupby(messages, _merging):
        same = list(group)
        text = "\n\n".join(filter(None, (str(message["content"]) for message in same)))
        merged.append(
            dict(same[0]) | {"role": role, "content": text} if same[1:] else dict(same[0])
        )
    return merged


def _merging(message: Message) -> tuple[object, object]:
    """What messages have in common that can be one; calls and results of tools have nothing."""
    plain = message["role"] in ("system", "user", "assistant") and not message.get("tool_calls")
    return message["role"], plain or id(message)


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
        self.merges = False
        if len(merge_roles(messages)) < len(messages) and not self._takes(messages):
            self.merges = True
            self.merges = self._takes(messages)
        if self.merges:
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
                merge_roles(messages) if self.merges else messages,
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


_MOST_END = 200  # characters of what a template puts after a message
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
    for step, piece, whole in pieces:
        yield step, token_ids + whole
        token_ids = token_ids + piece


def _pieces(
    template: Template, messages: list[dict[str, object]], steps: list[Step]
) -> list[tuple[Step, list[int], list[int]]] | None:
    """The tokens that every step adds, tokenized by themselves: those that stay, and all of them.

    Saves tokenizing a conversation as often as it has messages. None if it is not exact: the text
    does not just grow, or tokens reach from one piece into the next.
    """
    rendered = [(step, _text(template, messages, step)) for step in steps]
    texts = [(step, text) for step, text in rendered if text is not None]
    if not texts:
        return []
    cuts = [_shared(a, b, template.merges) for (_, a), (_, b) in pairwise(texts)]
    cuts.append(len(texts[-1][1]))
    if min(cuts) < 0 or cuts != sorted(cuts):
        return None
    whole = template.encode(texts[-1][1])
    starts = [0, *cuts[:-1]]
    stable = [
        template.encode(texts[-1][1][a:b]) for a, b in list(zip(starts, cuts, strict=True))[1:]
    ]
    first = len(whole) - sum(map(len, stable))
    if first < 0 or whole[first:] != [token for piece in stable for token in piece]:
        return None
    pieces = []
    for (step, text), start, cut, piece in zip(
        texts, starts, cuts, [whole[:first], *stable], strict=True
    ):
        ends = template.encode(text[start:]) if cut < len(text) else piece
        pieces.append((step, piece, ends))
    return pieces


def _shared(before: str, after: str, merges: bool) -> int:
    """How much of a text the next one begins with; -1 if it does not just go on.

    Where messages are merged, the end of the one before gives way to the next.
    """
    if after.startswith(before):
        return len(before)
    safe = max(0, len(before) - _MOST_END)
    if not merges or before[:safe] != after[:safe]:
        return -1
    pairs = zip(before[safe:], after[safe:], strict=False)
    same = safe + next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    # Tokens begin at spaces; many reach from a full stop into the blank line after it.
    space = before.rfind(" ", safe, same)
    return same if space < 0 else space


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
