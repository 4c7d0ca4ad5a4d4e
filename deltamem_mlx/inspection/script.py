"""What is to be traced: the tokens of a text or a conversation, and where its turns end."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from jinja2 import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..text.messages import Message
from ..text.pieces import pieces_of, shown_pieces
from ..text.rendering import Template
from ..text.spans import Spans, message_spans, running_spans

_PARAGRAPH = re.compile(r"\n\s*\n+")
_LINE = re.compile(r"\n+")


@dataclass(frozen=True)
class ScriptTurn:
    """A part of what is traced: a message, or a paragraph of a text.

    Args:
        role (str): The message's role; ``paragraph`` or ``line``; ``system`` for a template's own
          prompt.
        text (str): What it says.
        end (int): Tokens up to its end, from the start of all.
    """

    role: str
    text: str
    end: int


@dataclass(frozen=True)
class Script:
    """What is to be traced: tokens, ids and turns; the text of each token, and as it is shown."""

    spans: Spans
    pieces: list[str]
    shown: list[str]
    turns: list[ScriptTurn]


def text_script(
    tokenizer: TokenizerWrapper, text: str, template_kwargs: Mapping[str, object] | None = None
) -> Script:
    """A text as one message of the user's, its paragraphs (or lines) as turns.

    A system prompt of the template's own is a turn before them. Without a chat template the bare
    text is fed.

    Raises:
        ValueError: If the text is empty.
    """
    if not text.strip():
        raise ValueError("The text to trace is empty; expected some text.")
    opening, rendered = "", text
    if tokenizer.has_chat_template:
        message = {"role": "user", "content": text}
        spans = message_spans(tokenizer, [message], sentences=True, template_kwargs=template_kwargs)
        template = Template(tokenizer, template_kwargs or {})
        rendered = template.render([message], False)
        opening = _own_opening(template, rendered[: max(0, rendered.find(text.strip()))])
    else:
        ids = list(tokenizer.encode(text))
        spans = Spans(ids, [0] * len(ids), [0] * len(ids))
    pieces = pieces_of(tokenizer, spans.token_ids)
    reached = np.array(_ends_in(rendered, tokenizer, spans.token_ids, pieces))
    shown, turns = shown_pieces(tokenizer, spans.token_ids, pieces), list[ScriptTurn]()
    for role, part, end in _parts(text, rendered, opening):
        whole = end == len(rendered)
        count = len(pieces) if whole else int(np.searchsorted(reached, end, side="right"))
        if count > (turns[-1].end if turns else 0):
            said = "".join(shown[:count]).strip() if role == "system" else part
            turns.append(ScriptTurn(role, said, count))
    return Script(spans, pieces, shown, turns)


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
    pieces = pieces_of(tokenizer, spans.token_ids)
    return Script(spans, pieces, shown_pieces(tokenizer, spans.token_ids, pieces), turns)


def _own_opening(template: Template, before: str) -> str:
    """What a template says of its own before the header of a first message: a system prompt.

    ``before`` is all that it puts there. Its header is what stands between a reply and the next
    message as well.
    """
    roles = ("user", "assistant", "user")
    texts = [{"role": role, "content": f"Part{n}"} for n, role in enumerate(roles)]
    try:
        between = template.render(texts, False).partition("Part1")[2].partition("Part2")[0]
    except TemplateError:
        return ""
    pairs = enumerate(zip(before[::-1], between[::-1], strict=False))
    shared = next((i for i, (a, b) in pairs if a != b), min(len(before), len(between)))
    opening = before[: len(before) - shared]
    return opening if re.search(r"\w\s+\w", opening) else ""  # not a token that opens every text


def _parts(text: str, rendered: str, opening: str) -> Iterator[tuple[str, str, int]]:
    """(role, text, end in ``rendered``) of the opening and of each paragraph, or line.

    What stands between two of them is part of the first.
    """
    if opening:
        yield "system", opening.strip(), len(opening)
    separator = next((s for s in (_PARAGRAPH, _LINE) if s.search(text.strip())), None)
    parts = [text] if separator is None else separator.split(text)
    paragraphs = [part.strip() for part in parts if part.strip()]
    place, starts = max(rendered.find(text.strip()), len(opening)), []
    for part in paragraphs:
        found = rendered.find(part, place)
        starts.append(found)
        place = place if found < 0 else found + len(part)
    ends = [len(rendered)]
    for start in reversed(starts[1:]):
        ends.append(start if start >= 0 else ends[-1])
    for part, end in zip(paragraphs, reversed(ends), strict=True):
        yield "line" if separator is _LINE else "paragraph", part, end


def _ends_in(
    text: str, tokenizer: TokenizerWrapper, ids: Sequence[int], pieces: Sequence[str]
) -> list[int]:
    """Where in a text each of its tokens ends, in characters.

    A tokenizer of the Rust kind knows; of others the pieces are compared, spaces left out: many
    lose those.
    """
    if backend := getattr(tokenizer, "backend_tokenizer", None):
        for special in (False, True):
            encoded = backend.encode(text, add_special_tokens=special)
            if list(encoded.ids) == list(ids):
                return list(accumulate((end for _, end in encoded.offsets), max))
    solid = [i for i, character in enumerate(text) if not character.isspace()]
    counts = accumulate(len("".join(piece.split())) for piece in pieces)
    return [solid[min(count, len(solid)) - 1] + 1 if count else 0 for count in counts]
