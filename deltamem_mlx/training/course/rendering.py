"""Conversations of a course as tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...text.messages import Message
from ...text.rendering import first_tokens
from ...text.spans import message_spans

SYSTEMS = (
    "",
    "You are a helpful assistant.",
    "Answer briefly.",
    "You are a friendly companion who listens and remembers.",
    "You are a careful expert. Say when you do not know something.",
    "Today is a quiet day. Reply in the language of the user, in one or two sentences.",
)


@dataclass(frozen=True)
class ChatForm:
    """How a model's conversations are written.

    Args:
        tokenizer (TokenizerWrapper): The model's.
        template_kwargs (Mapping[str, Any]): For the chat template.
    """

    tokenizer: TokenizerWrapper
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def tokens(self, messages: Sequence[Message]) -> list[int]:
        """A conversation as the chat template renders it."""
        spans = message_spans(self.tokenizer, messages, template_kwargs=self.template_kwargs)
        return list(spans.token_ids)

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """A conversation with the header of the answer."""
        spans = message_spans(
            self.tokenizer,
            messages,
            add_generation_prompt=True,
            template_kwargs=self.template_kwargs,
        )
        return list(spans.token_ids)

    def encode(self, text: str) -> list[int]:
        """A text's own tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def opened(self, text: str) -> list[int]:
        """A text's tokens behind the one that a context begins with, if the model has one."""
        return first_tokens(self.tokenizer) + self.encode(text)

    def encodings(self, word: str) -> list[list[int]]:
        """How a word may be encoded in a text: behind a blank, or by itself."""
        found = []
        for tokens in (self.encode(" " + word), self.encode(word)):
            # Some tokenizers begin every text with a blank of its own.
            if len(tokens) > 1 and not str(self.tokenizer.decode(tokens[:1])).strip():
                tokens = tokens[1:]
            if tokens and tokens not in found:
                found.append(tokens)
        return found

    def openings(self) -> list[list[dict[str, str]]]:
        """System messages that conversations may begin with; none if the template refuses them.

        An empty one keeps a template's own system text out.
        """
        said = [{"role": "user", "content": "Hi."}]
        found = [[{"role": "system", "content": text}] for text in SYSTEMS]
        try:
            lengths = [len(self.tokens([*begin, *said])) for begin in found]
        except ValueError:
            return []
        return found if lengths[0] < len(self.tokens(said)) else found[1:]
