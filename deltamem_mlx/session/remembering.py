"""Many messages written a few at a time, so that it can be watched and stopped."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import NamedTuple

import mlx.core as mx

from ..text.messages import Message
from .conversation import Conversation

# Tokens a step, and about as many a part: who stops it waits for the one, and loses the other.
# Ctrl-C is heard between steps, and a CPU may need a minute for the 2,048 of mlx-lm.
CPU_STEP, GPU_STEP = 256, 1024


def short_step() -> int:
    """Tokens of a step that this device takes a second or so for."""
    return CPU_STEP if mx.default_device().type == mx.DeviceType.cpu else GPU_STEP


class Written(NamedTuple):
    """How far it is.

    Attributes:
        tokens (int): Fed so far.
        total (int): About how many there are in all; exact at the end.
        messages (int): How many messages were fed whole.
    """

    tokens: int
    total: int
    messages: int


def written(
    talk: Conversation, new: Sequence[Message], *, write: bool, step_size: int, source: str = ""
) -> Iterator[Written]:
    """Feed messages part by part, all of them one turn; yields after each step.

    Closing the iterator keeps the parts that were fed whole.
    """
    lengths = [len(talk.tokenizer.encode(str(m.get("content") or ""))) for m in new]
    # What the template puts around the second message, and so around all that follow.
    around = 0
    if len(new) > 1:
        around = talk.length_of(list(new[:2])) - talk.length_of(list(new[:1])) - lengths[1]
    about = [max(1, length + around) for length in lengths]
    tokens, first = 0, 0
    for end in _ends(lengths, step_size):
        fits = tokens / sum(about[:first]) if first else 1.0  # so far, to what was guessed
        began, left = tokens, round(fits * sum(about[end:]))
        part = round(fits * sum(about[first:end]))
        some = list(new[first:end])
        with closing(
            talk.feeding(some, write=write, step_size=step_size, source=source, goes_on=first > 0)
        ) as steps:
            for count in steps:
                tokens += count
                yield Written(tokens, max(tokens, began + part) + left, first)
        first = end
        yield Written(tokens, tokens + left, first)


def _ends(lengths: Sequence[int], most: int) -> Iterator[int]:
    """Where each part ends: it has as many messages as one step would take, and one at least."""
    size = 0
    for i, length in enumerate(lengths):
        if size and size + length > most:
            yield i
            size = 0
        size += length
    if lengths:
        yield len(lengths)
