"""What is to be traced: the tokens of a text or a conversation, and where its turns end."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..text.messages import Message
from ..text.spans import Spans, message_spans, running_spans

_PARAGRAPH = re.compile(r"\n\s*\n+")
_LINE = re.compile(r"\n+")


@dataclass(frozen=True)
class ScriptTurn:
    """A part of what is traced: a message, or a paragraph of a text.

    Args:
        role (str): The message's role, or ``paragraph``.
        text (str): What it says.
        end (int): Tokens up to its end, from the start of all.
    """

    role: str
    text: str
    end: int


@dataclass(frozen=True)
class Script:
    """What is to be traced: tokens, ids and turns."""

    spans: Spans
    pieces: list[str]
    turns: list[ScriptTurn]


def text_script(
    tokenizer: TokenizerWrapper, text: str, template_kwargs: Mapping[str, object] | None = None
) -> Script:
    """A text as one message of the user's, its paragraphs (or lines) as turns.

    Without a chat template the bare text is fed.

    Raises:
        ValueError: If the text is empty.
    """
    if not text.strip():
        raise ValueError("The text to trace is empty; expected some text.")
    if tokenizer.has_chat_template:
        message = {"role": "user", "content": text}
        spans = message_spans(tokenizer, [message], sentences=True, template_kwargs=template_kwargs)
    else:
        ids = list(tokenizer.encode(text))
        spans = Spans(ids, [0] * len(ids), [0] * len(ids))
    pieces = _pieces(tokenizer, spans.token_ids)
    return Script(spans, pieces, _paragraphs(text, pieces))


def messages_script(
    tokenizer: TokenizerWrapper,
    messages: Sequence[Message],
    template_kwargs: Mapping[str, object] | None = None,
) -> Script:
    """A conversation, its messages as turns.

    A message that the template does not render by itself is part of the next turn.

    Raises:
        TypeError, ValueError: As ``dm.message_spans``.
    """
    growing = running_spans(tokenizer, messages, sentences=True, template_kwargs=template_kwargs)
    ends = dict(growing)
    *_, spans = ends.values()
    turns: list[ScriptTurn] = []
    for count, before in ends.items():
        message, end = messages[count - 1], min(len(before.token_ids), len(spans.token_ids))
        if end > (turns[-1].end if turns else 0):
            turns.append(ScriptTurn(str(message["role"]), str(message.get("content") or ""), end))
    return Script(spans, _pieces(tokenizer, spans.token_ids), turns)


def _pieces(tokenizer: TokenizerWrapper, ids: Sequence[int]) -> list[str]:
    """The text that each token adds."""
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    pieces = []
    for token in ids:
        detokenizer.add_token(token)
        pieces.append(detokenizer.last_segment)
    detokenizer.finalize()
    pieces[-1] += detokenizer.last_segment
    return pieces


def _paragraphs(text: str, pieces: list[str]) -> list[ScriptTurn]:
    """The paragraphs of a text that is somewhere within the pieces."""
    separator = next((s for s in (_PARAGRAPH, _LINE) if s.search(text.strip())), None)
    cuts = [] if separator is None else [found.end() for found in separator.finditer(text.rstrip())]
    offset = max(0, "".join(pieces).find(text.strip()) - text.find(text.strip()[:1]))
    reached = np.cumsum([len(piece) for piece in pieces])
    turns: list[ScriptTurn] = []
    for start, end in pairwise([0, *cuts, len(text)]):
        count = int(np.searchsorted(reached, offset + end)) + 1 if end < len(text) else len(pieces)
        count = min(count, len(pieces))
        if text[start:end].strip() and count > (turns[-1].end if turns else 0):
            turns.append(ScriptTurn("paragraph", text[start:end].strip(), count))
    return turns
