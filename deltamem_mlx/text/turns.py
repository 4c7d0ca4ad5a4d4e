"""Which tokens a turn adds to a conversation, before the reply and after it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import NamedTuple

from ..problems import not_unicode
from .messages import Message, check_messages
from .rendering import Tokenizer
from .spans import Spans, last_spans, running_spans


class Turn(NamedTuple):
    """A rendered conversation of which the first part was fed before.

    Attributes:
        spans (Spans): All of it.
        start (int): Where the tokens of the new messages begin.
        said (Spans): The same without the header of a reply.
    """

    spans: Spans
    start: int
    said: Spans | None = None

    @property
    def seen(self) -> Spans:
        """The part that was fed before."""
        sentence_ids = self.spans.sentence_ids
        return Spans(
            self.spans.token_ids[: self.start],
            self.spans.message_ids[: self.start],
            None if sentence_ids is None else sentence_ids[: self.start],
        )

    @property
    def new(self) -> Spans:
        """The part to feed now."""
        return self.spans.tail(self.start)


def as_messages(text_or_messages: str | Message | Sequence[Message]) -> list[Message]:
    """A text as the user's message, a message as a list of one.

    Raises:
        TypeError, ValueError: If these are no messages, or the text is empty or no Unicode text.
    """
    if isinstance(text_or_messages, str):
        if not text_or_messages.strip():
            raise ValueError("The text is empty; expected something to say.")
        if why := not_unicode(text_or_messages):
            raise ValueError(f"The text {why}; expected Unicode text.")
        return [{"role": "user", "content": text_or_messages}]
    if isinstance(text_or_messages, PurePath):
        raise TypeError(
            f"{str(text_or_messages)!r} is a path; expected text or messages. What a file holds is "
            "told by session.remember(Path(…))."
        )
    if isinstance(text_or_messages, Mapping):
        text_or_messages = [text_or_messages]
    check_messages(text_or_messages)
    return [dict(message) for message in text_or_messages]


def turn_of(
    tokenizer: Tokenizer,
    seen: Sequence[Message],
    new: Sequence[Message],
    *,
    reply: bool,
    sentences: bool,
    template_kwargs: Mapping[str, object],
    known: Spans | None = None,
) -> Turn:
    """What ``new`` messages, and with ``reply`` the header of an answer, add to those seen.

    The tokens that ``seen`` is rendered to need not be those that were fed: a reply is fed as it
    was generated, and some templates leave the reasoning out of earlier replies.

    Args:
        tokenizer (Tokenizer): As in `message_spans`.
        seen, new (Sequence[Message]): The conversation so far, and what is added to it.
        reply (bool): End with the header of a reply.
        sentences, template_kwargs: As in `message_spans`.
        known (Spans): The spans of ``seen``; found anew if they are not given.

    Raises:
        TypeError, ValueError: As `message_spans`.
    """
    spans, said = Spans([], []), None
    for count, spans in running_spans(
        tokenizer,
        [*seen, *new],
        add_generation_prompt=reply,
        sentences=sentences,
        template_kwargs=template_kwargs,
        known=_pair(seen, known),
    ):
        if count == len(seen):
            known = spans
        if said is None and count == len(seen) + len(new):
            said = spans
    if not seen:
        return Turn(spans, 0, said)
    if known is not None and spans.token_ids[: len(known.token_ids)] == known.token_ids:
        return Turn(spans, len(known.token_ids), said)
    spoken = sum(message["role"] != "system" for message in seen)
    ids = spans.message_ids
    return Turn(spans, next((i for i, n in enumerate(ids) if n >= spoken), len(ids)), said)


def _pair(seen: Sequence[Message], known: Spans | None) -> tuple[int, Spans] | None:
    return None if known is None else (len(seen), known)


def spans_with(
    tokenizer: Tokenizer,
    seen: Sequence[Message],
    new: Sequence[Message],
    *,
    sentences: bool,
    template_kwargs: Mapping[str, object],
    known: Spans | None = None,
) -> Spans:
    """The spans of a conversation; arguments as in `turn_of`."""
    growing = running_spans(
        tokenizer,
        [*seen, *new],
        sentences=sentences,
        template_kwargs=template_kwargs,
        known=_pair(seen, known),
    )
    return last_spans(growing)


def end_of_turn(turn: Turn, spans: Spans, reply: Sequence[int], end_ids: Collection[int]) -> Spans:
    """What the template puts after a reply: its end token and, often, a newline.

    Args:
        turn (Turn): What the reply answers.
        spans (Spans): The conversation up to and with the reply.
        reply (Sequence[int]): The reply as it was generated, without an end token.
        end_ids (Collection[int]): Tokens that end a turn.
    """
    fed = [*turn.spans.token_ids, *reply]
    if spans.token_ids[: len(fed)] == fed:
        return spans.tail(len(fed))
    # The reply's text is tokenized in another way than it was generated, or rendered in another.
    last = max(spans.message_ids, default=0)
    ends = [
        i
        for i, (token, message) in enumerate(zip(spans.token_ids, spans.message_ids, strict=True))
        if token in end_ids and message == last
    ]
    return spans.tail(ends[-1] if ends else len(spans.token_ids))


def newest_turns(seen: Sequence[Message], spans: Spans, budget: int) -> list[Message]:
    """System messages at the start, and as many whole turns at the end as fit.

    Args:
        seen (Sequence[Message]): A conversation.
        spans (Spans): Its ids; what follows it is not looked at.
        budget (int): Tokens at most, all together.
    """
    system = leading_system(seen)
    spoken = [message for message in seen if message["role"] != "system"]
    counts = [0] * len(spoken)
    for message_id in spans.message_ids:
        if 0 <= message_id < len(spoken):
            counts[message_id] += 1
    budget -= sum(message_id < 0 for message_id in spans.message_ids) if system else 0
    first = len(spoken)
    for i in range(len(spoken) - 1, -1, -1):
        budget -= counts[i]
        if budget < 0:
            break
        if spoken[i]["role"] == "user":
            first = i
    return [*system, *spoken[first:]]


def leading_system(messages: Sequence[Message]) -> list[Message]:
    """The system messages that open a conversation."""
    spoken = next((i for i, m in enumerate(messages) if m["role"] != "system"), len(messages))
    return list(messages[:spoken])
