"""Episodes: which part of a conversation is written into the memory, which read, what is learned.

An episode has one target, an assistant message. Its write part fills the state and leaves no
context; its read part is what the model sees when it has to produce the target (arXiv 2605.12357).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..text.messages import Message
from ..text.rendering import Tokenizer
from ..text.spans import NO_SPAN, running_spans
from .episode_settings import EpisodeSettings
from .read_parts import ReadPart, ReadParts, supervised_turns

MODES = ("both", "state_only", "no_memory")


@dataclass(frozen=True, eq=False)
class WritePart:
    """What is written into the memory beforehand; no tokens when there is no history.

    Attributes:
        tokens, message_ids, sentence_ids (np.ndarray): [W] int32 each. Sentence ids are all -1 when
            they were not asked for. Cutting does not renumber.
        dropped (int): Tokens cut off at the start.
    """

    tokens: np.ndarray
    message_ids: np.ndarray
    sentence_ids: np.ndarray
    dropped: int = 0


_EMPTY = np.zeros(0, np.int32)
NO_WRITE = WritePart(_EMPTY, _EMPTY, _EMPTY)


@dataclass(frozen=True, eq=False)
class View:
    """One way to show an episode: a write part and the read part that goes with it.

    Attributes:
        write (WritePart): What is written.
        read (ReadPart): What is read and learned.
        teacher (ReadPart, optional): What the plain model reads that has the history in its
          context; its predictions at its labels are learned. They are the labels of ``read``, less
          those of ``plain``.
        plain (ReadPart, optional): ``read`` with the labels of those replies alone that have
          nothing to do with what was written: there the plain model's predictions are learned in
          place of the text.
    """

    write: WritePart
    read: ReadPart
    teacher: ReadPart | None = None
    plain: ReadPart | None = None

    @property
    def running(self) -> bool:
        """Whether it is running text, not a conversation."""
        return self.plain is self.read

    @property
    def unrelated(self) -> bool:
        """Whether no reply has anything to do with what was written."""
        return self.plain is not None and np.array_equal(self.plain.labels, self.read.labels)


@dataclass(frozen=True, eq=False)
class Episode:
    """One target with its views.

    Attributes:
        both (View): The recent messages are visible, older ones written.
        state_only (View): Only the last message is visible, all others written. The same object as
            ``both`` where they do not differ.
        target (int): Index of the target in the conversation.
        written, visible (int): Messages in the write part of ``both``, and before the target in its
            read part.
        conversation (int): Which of a dataset's conversations it is of.
    """

    both: View
    state_only: View
    target: int
    written: int
    visible: int
    conversation: int = 0

    def view(self, mode: str) -> View:
        """The view for ``both``, ``state_only`` or ``no_memory`` (as ``both``, nothing written)."""
        if mode not in MODES:
            raise ValueError(f"mode is {mode!r}; expected {', '.join(MODES)}.")
        if mode == "no_memory":  # a teacher with the history would teach to make it up
            return replace(self.both, write=NO_WRITE, teacher=None)
        return self.state_only if mode == "state_only" else self.both


def build_episodes(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    settings: EpisodeSettings,
    *,
    template_kwargs: Mapping[str, Any] | None = None,
    unrelated: Collection[int] = (),
) -> list[Episode]:
    """The episodes of a conversation, one for each target, in order.

    The system messages at its start open every part. A write part is the conversation up to the
    visible messages; without anything but system messages before them there is none.

    Args:
        tokenizer (Tokenizer): As in `message_spans`.
        messages (Sequence[Message]): The conversation, checked before (`check_messages`); what
            follows the last target is not used.
        settings (EpisodeSettings): What to cut and keep.
        template_kwargs (Mapping, optional): For the chat template.
        unrelated (Collection[int]): Replies that have nothing to do with what was written: of them
            the plain model's predictions are learned, which reads what is visible and no more.

    Raises:
        ValueError: As `running_spans` and `supervised_turns`, or if a teacher would see other
            tokens to learn.
    """
    turns = supervised_turns(messages, settings.assistant_loss_mode)
    opening = next(i for i, message in enumerate(messages) if message["role"] != "system")
    ends = {
        turn: [max(opening, turn - recent) for recent in (settings.episode_recent_messages, 1)]
        for turn in turns
    }
    writes = _write_parts(
        tokenizer,
        messages,
        opening,
        {e for pair in ends.values() for e in pair},
        settings,
        template_kwargs,
    )

    parts = ReadParts(tokenizer, messages, settings, template_kwargs, frozenset(unrelated))

    def view(turn: int, end: int) -> View:
        shown = [*range(opening), *range(end, turn + 1)]
        read, plain = parts.read(shown), parts.plain(shown)
        if not settings.taught or end == opening:  # without a history there is nothing to teach
            return View(writes[end], read, None, plain)
        return View(writes[end], read, parts.taught(turn, read, plain), plain)

    episodes = []
    for turn, (end, last) in ends.items():
        both = view(turn, end)
        state_only = both if last == end else view(turn, last)
        written = end if end > opening else 0
        episodes.append(Episode(both, state_only, turn, written, opening + turn - end))
    return episodes


def _write_parts(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    opening: int,
    ends: set[int],
    settings: EpisodeSettings,
    template_kwargs: Mapping[str, Any] | None,
) -> dict[int, WritePart]:
    """The write part ``messages[:end]`` for every end, from one pass over the conversation."""
    parts = {opening: NO_WRITE}
    if max(ends) == opening:
        return parts
    history = messages[: max(ends)]
    limit = settings.max_write_length
    for count, spans in running_spans(
        tokenizer, history, sentences=settings.sentences, template_kwargs=template_kwargs
    ):
        if count in ends and count > opening:
            columns = (spans.token_ids, spans.message_ids, spans.sentence_ids or [NO_SPAN])
            tokens, message_ids, sentence_ids = (np.array(c[-limit:], np.int32) for c in columns)
            sentence_ids = np.broadcast_to(sentence_ids, tokens.shape)
            dropped = len(spans.token_ids) - len(tokens)
            parts[count] = WritePart(tokens, message_ids, sentence_ids, dropped)
    missing = sorted(ends - parts.keys())
    if missing:
        raise ValueError(
            f"The chat template refuses the history before messages[{missing[0]}], so it cannot be "
            "written on its own. Reorder the messages, or set another tokenizer.chat_template."
        )
    return parts
