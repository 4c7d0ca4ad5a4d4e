"""Episodes: which part of a conversation is written into the memory, which read, what is learned.

An episode has one target, an assistant message. Its write part fills the state and leaves no
context; its read part is what the model sees when it has to produce the target (arXiv 2605.12357).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..text.messages import Message
from ..text.rendering import Tokenizer
from ..text.spans import NO_SPAN, last_spans, running_spans

UNSUPERVISED = -100
LOSS_MODES = ("all_assistant_turns", "visible_assistant_turns", "final_assistant_only")
MODES = ("both", "state_only", "no_memory")


@dataclass(frozen=True)
class EpisodeSettings:
    """How conversations become episodes. The defaults are those of the authors' release.

    Args:
        assistant_loss_mode (str): Targets: ``final_assistant_only``; ``all_assistant_turns``, each
            an episode of its own; or ``visible_assistant_turns``: one episode, for the last
            assistant message, in which the visible ones before it are learned too. They share one
            write pass, which is most of the work.
        episode_recent_messages (int): Messages before the target that stay visible; what is older
            is written. A system message in the middle of a conversation counts as one.
        max_length (int): Tokens kept of a read part, from its end.
        max_write_length (int): Tokens kept of a write part, from its end.
        sentences (bool): Give sentence ids, for ``sentence_mean`` writes.
        taught (bool): Give what a teacher reads who has the history in its context.

    Raises:
        TypeError: A value has the wrong type.
        ValueError: Values are out of range; all of them are listed.
    """

    assistant_loss_mode: str = "final_assistant_only"
    episode_recent_messages: int = 1
    max_length: int = 512
    max_write_length: int = 8192
    sentences: bool = False
    taught: bool = False

    def __post_init__(self) -> None:
        least = {"episode_recent_messages": 0, "max_length": 2, "max_write_length": 1}
        values = {name: getattr(self, name) for name in least}
        wrong = [n for n, value in values.items() if type(value) is not int]
        if wrong:
            kinds = ", ".join(f"{n} is {values[n]!r}" for n in wrong)
            raise TypeError(f"Episode settings: {kinds}; expected whole numbers.")
        problems = [
            f"{name} is {values[name]}; expected at least {low}"
            for name, low in least.items()
            if values[name] < low
        ]
        if self.assistant_loss_mode not in LOSS_MODES:
            problems.append(
                f"assistant_loss_mode is {self.assistant_loss_mode!r}; expected one of "
                f"{', '.join(LOSS_MODES)}"
            )
        if problems:
            raise ValueError("Episode settings: " + "; ".join(problems) + ".")


@dataclass(frozen=True, eq=False)
class ReadPart:
    """What the model reads and learns.

    Attributes:
        tokens (np.ndarray): [R] int32.
        labels (np.ndarray): [R] int32, the token itself where it is supervised, -100 elsewhere. A
            label is predicted from the token before it, so one at position 0 counts for nothing.
        dropped (int): Tokens cut off at the start.
    """

    tokens: np.ndarray
    labels: np.ndarray
    dropped: int = 0


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


def supervised_turns(messages: Sequence[Message], assistant_loss_mode: str) -> list[int]:
    """The indices of the messages that get an episode.

    Raises ValueError if there is no assistant message, or the mode is unknown.
    """
    if assistant_loss_mode not in LOSS_MODES:
        raise ValueError(
            f"assistant_loss_mode is {assistant_loss_mode!r}; expected one of "
            f"{', '.join(LOSS_MODES)}."
        )
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError("No assistant message: there is nothing to learn. Add a reply.")
    return turns if assistant_loss_mode == "all_assistant_turns" else turns[-1:]


def labelled_sequence(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    max_length: int,
    assistant_loss_mode: str = "final_assistant_only",
    template_kwargs: Mapping[str, Any] | None = None,
) -> ReadPart:
    """A conversation as tokens and labels, without a memory.

    Supervised is all that an assistant message adds to the rendered conversation, its header and
    end marker included. The last ``max_length`` tokens are kept.

    Raises ValueError as `running_spans` and `supervised_turns`.
    """
    turns = supervised_turns(messages, assistant_loss_mode)
    return _labelled(tokenizer, messages, turns, max_length, template_kwargs)


def _labelled(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    turns: Sequence[int],
    max_length: int,
    template_kwargs: Mapping[str, Any] | None,
) -> ReadPart:
    """As `labelled_sequence`, with the messages that are supervised."""
    spans = last_spans(running_spans(tokenizer, messages, template_kwargs=template_kwargs))
    tokens = np.array(spans.token_ids, np.int32)
    ids = [sum(message["role"] != "system" for message in messages[:turn]) for turn in turns]
    labels = np.where(np.isin(spans.message_ids, ids), tokens, UNSUPERVISED)
    return ReadPart(
        tokens[-max_length:],
        labels[-max_length:].astype(np.int32),
        max(0, len(tokens) - max_length),
    )


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

    parts = _ReadParts(tokenizer, messages, settings, template_kwargs, frozenset(unrelated))

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


class _ReadParts(NamedTuple):
    """Makes the read parts of a conversation; messages are named by their places in it."""

    tokenizer: Tokenizer
    messages: Sequence[Message]
    settings: EpisodeSettings
    template_kwargs: Mapping[str, Any] | None
    unrelated: frozenset[int]

    def read(self, shown: Sequence[int]) -> ReadPart:
        """Some messages with the replies of the loss mode as labels."""
        return self._of(shown, self._learned(shown), self.settings.max_length)

    def plain(self, shown: Sequence[int]) -> ReadPart | None:
        """The same with the labels of unrelated replies alone, if there are any."""
        silent = [i for i in self._learned(shown) if i in self.unrelated]
        return self._of(shown, silent, self.settings.max_length) if silent else None

    def taught(self, turn: int, read: ReadPart, plain: ReadPart | None) -> ReadPart | None:
        """The whole conversation up to a target, with the labels that a read part has of its own.

        Args:
            turn (int): The target.
            read, plain (ReadPart): Those of a view.
        """
        labels = read.labels
        if plain is not None:
            labels = np.where(plain.labels == UNSUPERVISED, labels, UNSUPERVISED)
            if not (labels != UNSUPERVISED).any():
                return None
        most = self.settings.max_write_length + self.settings.max_length
        shown = range(turn + 1)
        own = [i for i in self._learned(shown) if i not in self.unrelated]
        return _as_labelled(self._of(shown, own, most), labels)

    def _learned(self, shown: Sequence[int]) -> list[int]:
        """Replies to be learned: the visible ones, or the last."""
        replies = [i for i in shown if self.messages[i]["role"] == "assistant"]
        visible = self.settings.assistant_loss_mode == "visible_assistant_turns"
        return replies if visible else replies[-1:]

    def _of(self, shown: Sequence[int], learned: Sequence[int], most: int) -> ReadPart:
        """Some messages, their last ``most`` tokens."""
        messages = [self.messages[i] for i in shown]
        turns = [place for place, i in enumerate(shown) if i in learned]
        return _labelled(self.tokenizer, messages, turns, most, self.template_kwargs)


def _as_labelled(told: ReadPart, labels: np.ndarray) -> ReadPart:
    """What a teacher reads, with the last of its labels: as many as a read part has."""
    wanted = labels[1:][labels[1:] != UNSUPERVISED]
    places = np.flatnonzero(told.labels != UNSUPERVISED)[-wanted.size or told.labels.size :]
    if not np.array_equal(told.tokens[places], wanted):
        raise ValueError(
            "The chat template renders a reply otherwise behind its history than without it, so a "
            "model that has the history cannot teach it. Leave --distill out, or set another "
            "tokenizer.chat_template."
        )
    labels = np.full_like(told.labels, UNSUPERVISED)
    labels[places] = told.tokens[places]
    return ReadPart(told.tokens, labels, told.dropped)


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
