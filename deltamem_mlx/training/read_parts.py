"""Read parts: what a model, or its teacher, sees of a conversation, and what of it is learned."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..text.messages import Message
from ..text.rendering import Tokenizer
from ..text.spans import last_spans, running_spans
from .episode_settings import LOSS_MODES, EpisodeSettings

UNSUPERVISED = -100


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


class ReadParts(NamedTuple):
    """Makes the read parts of a conversation; messages are named by their places in it."""

    tokenizer: Tokenizer
    messages: Sequence[Message]
    settings: EpisodeSettings
    template_kwargs: Mapping[str, Any] | None
    unrelated: frozenset[int]

    def read(self, shown: Sequence[int]) -> ReadPart:
        """Some messages with the replies of the loss mode as labels."""
        return labelled_sequence(
            self.tokenizer,
            self._messages(shown),
            max_length=self.settings.max_length,
            assistant_loss_mode=self._mode,
            template_kwargs=self.template_kwargs,
        )

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
        return [shown[turn] for turn in supervised_turns(self._messages(shown), self._mode)]

    @property
    def _mode(self) -> str:
        visible = self.settings.assistant_loss_mode == "visible_assistant_turns"
        return "all_assistant_turns" if visible else "final_assistant_only"

    def _messages(self, shown: Sequence[int]) -> list[Message]:
        return [self.messages[i] for i in shown]

    def _of(self, shown: Sequence[int], learned: Sequence[int], most: int) -> ReadPart:
        """Some messages, their last ``most`` tokens."""
        turns = [place for place, i in enumerate(shown) if i in learned]
        messages = self._messages(shown)
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
