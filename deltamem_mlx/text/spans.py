"""From conversations to token, message and sentence ids.

Sequence-state writes (arXiv 2605.12357) write once per message or per sentence, so every token has
to know which one it belongs to. The ids follow from the chat template alone: a message owns the
tokens that it adds to the rendered conversation. Nothing here touches a model.
"""

import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from .messages import Message, check_messages, template_messages
from .rendering import Template, Tokenizer, renders

NO_SPAN = -1

# A template may end the last message differently (an end token that only it has, two newlines that
# merge into one token), so a few tokens before an added message may change.
_MAX_REPLACED_TOKENS = 8

# Where one sentence ends and the next begins: the next opens with the gap.
_SENTENCE_END = re.compile(r"[.!?;:](?P<gap>[\"')\]\u201d\u2019]*\s+)|(?P<blank>\n\n+)")


class Spans(NamedTuple):
    """The ids of T tokens.

    Attributes:
        token_ids (list[int]): T token ids.
        message_ids (list[int]): T message ids: non-system messages count from 0; -1 for system
            messages and the generation prompt.
        sentence_ids (list[int], optional): T sentence ids, counted from 0 through the conversation;
            -1 outside the contents of messages. None if they were not asked for.
    """

    token_ids: list[int]
    message_ids: list[int]
    sentence_ids: list[int] | None = None

    def tail(self, start: int) -> "Spans":
        """The same ids for the tokens from ``start`` on."""
        sentence_ids = None if self.sentence_ids is None else self.sentence_ids[start:]
        return Spans(self.token_ids[start:], self.message_ids[start:], sentence_ids)


def message_spans(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    sentences: bool = False,
    template_kwargs: Mapping[str, object] | None = None,
) -> Spans:
    """The token, message and sentence ids of a conversation.

    A message's span is everything it adds to the rendered conversation: role header, content, end
    marker. Where the template refuses to render the conversation up to some message (often, a
    system message alone), that message's tokens belong to the next one.

    Args:
        tokenizer (Tokenizer): mlx-lm's or transformers' tokenizer, with a chat template.
        messages (Sequence[Message]): ``{"role": ..., "content": ...}``, as in mlx-lm.
        add_generation_prompt (bool): End with the header of the assistant's next message.
        sentences (bool): Also give sentence ids.
        template_kwargs (Mapping, optional): For the template: ``tools``, ``enable_thinking``, ...

    Returns:
        Spans: Three lists of the same length; the tokens are those of ``apply_chat_template``.

    Raises:
        TypeError: A message is not a mapping, or a role or content is not text.
        ValueError: No messages; a role or content is missing; the template refuses the
            conversation, or rewrites earlier messages when one is added.
    """
    check_messages(messages)
    return last_spans(
        running_spans(
            tokenizer,
            messages,
            add_generation_prompt=add_generation_prompt,
            sentences=sentences,
            template_kwargs=template_kwargs,
        )
    )


def last_spans(running: Iterator[tuple[int, Spans]]) -> Spans:
    """The spans of all that `running_spans` yields."""
    return deque(running, maxlen=1).pop()[1]


def sentence_chunks(text: str) -> list[str]:
    """The sentences of a text, in order; together they are the text.

    The separator opens the next piece, and so does a closing quote or bracket. An empty text is one
    empty sentence.
    """
    matches = _SENTENCE_END.finditer(text)
    starts = [match.start(match.lastgroup or 0) for match in matches]
    edges = [0, *(start for start in starts if start > 0), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def running_spans(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    sentences: bool = False,
    template_kwargs: Mapping[str, object] | None = None,
    known: tuple[int, Spans] | None = None,
) -> Iterator[tuple[int, Spans]]:
    """Yields (number of messages, their spans) as messages are added one by one.

    Counts at which the template cannot render are left out. With a generation prompt, the last
    count comes twice: without and with it. ``known`` is a pair that was yielded before: what comes
    after it is yielded, for the cost of that alone. Other arguments and errors as in
    `message_spans`, but that the messages have been checked before.
    """
    rendered = template_messages(messages)
    template = Template(tokenizer, template_kwargs or {}, rendered)
    start, before = known or (0, Spans([], [], []))
    before_sentences = before.sentence_ids or [NO_SPAN] * len(before.token_ids)
    next_sentence = 1 + max(before_sentences, default=NO_SPAN)
    steps = [(count, False) for count in range(start + 1, len(rendered) + 1)]
    steps += [(len(rendered), True)] * add_generation_prompt
    for (count, is_prompt), token_ids in renders(template, rendered, steps):
        message = rendered[count - 1]
        head, tail = _kept(before.token_ids, token_ids, message, count)
        added = token_ids[head + tail :]
        message_id, sentence_ids = NO_SPAN, [NO_SPAN] * len(added)
        if not is_prompt and message["role"] != "system":
            message_id = _count_spoken(rendered[: count - 1])
            if sentences:
                sentence_ids, next_sentence = _sentence_ids(
                    template, str(message["content"]), added, next_sentence
                )
        cut = len(before.token_ids) - tail
        ids, before_ids = [message_id] * len(added), before.message_ids
        before_sentences = [*before_sentences[:head], *before_sentences[cut:], *sentence_ids]
        before = Spans(token_ids, [*before_ids[:head], *before_ids[cut:], *ids], before_sentences)
        yield count, before if sentences else before._replace(sentence_ids=None)


def _kept(before: list[int], after: list[int], message: Message, count: int) -> tuple[int, int]:
    """(head, tail): after adding a message, the first and the last so many tokens still stand.

    All of them with most templates. Some drop a part of what came before (the reasoning of an
    earlier reply): then ``after`` goes on with what followed that part, and its ids move along.
    """
    if after[: len(before)] == before:
        return len(before), 0
    pairs = zip(before, after, strict=False)
    head = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(before), len(after)))
    rest = len(before) - head
    tail = next((n for n in range(rest - 1, 0, -1) if after[head : head + n] == before[-n:]), 0)
    if tail < 2 and rest - tail > _MAX_REPLACED_TOKENS:
        raise ValueError(
            f"The chat template rewrites earlier messages when messages[{count - 1}] (role "
            f"{message['role']!r}) is added: {rest - tail} of the {len(before)} tokens before it "
            "change. Expected a template that only appends, to tell messages apart. Pass "
            "template_kwargs that keep earlier turns as they are (enable_thinking=False, say), "
            "strip reasoning from earlier replies, or set another tokenizer.chat_template."
        )
    return head, tail


def _sentence_ids(
    template: Template, content: str, added: list[int], next_id: int
) -> tuple[list[int], int]:
    """Sentence ids of the tokens that a message adds, and the next free id."""
    ids = [NO_SPAN] * len(added)
    content_ids = template.encode(content)
    start = _find(added, content_ids) if content_ids else None
    if start is None:
        return ids, next_id
    chunks = [template.encode(chunk) for chunk in sentence_chunks(content)]
    if [token for chunk in chunks for token in chunk] != content_ids:
        chunks = [content_ids]
    for chunk in filter(None, chunks):
        ids[start : start + len(chunk)] = [next_id] * len(chunk)
        start += len(chunk)
        next_id += 1
    return ids, next_id


def _find(tokens: list[int], part: list[int]) -> int | None:
    """Where ``part`` first occurs. The first match even if it is the role that reads the same."""
    places = range(len(tokens) - len(part) + 1)
    return next((i for i in places if tokens[i : i + len(part)] == part), None)


def _count_spoken(messages: Sequence[Message]) -> int:
    return sum(message["role"] != "system" for message in messages)
