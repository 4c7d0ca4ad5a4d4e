"""Episodes of many conversations, tokenized once."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, overload

from ..problems import raise_problems
from ..text.rendering import Tokenizer
from ..text.rows import ConversationRow
from .episode_settings import EpisodeSettings
from .episodes import NO_WRITE, Episode, View, WritePart, build_episodes
from .read_parts import UNSUPERVISED, supervised_turns
from .running_text import text_episode


class EpisodeDataset(Sequence[Episode]):
    """The episodes of some conversations, tokenized when first asked for and then kept.

    Args:
        conversations (Sequence[ConversationRow]): From `load_conversations`.
        tokenizer (Tokenizer): Of the model to train.
        settings (EpisodeSettings): How conversations become episodes.
        template_kwargs (Mapping, optional): For the chat template, beside a row's own ``tools``.
    """

    def __init__(
        self,
        conversations: Sequence[ConversationRow],
        tokenizer: Tokenizer,
        settings: EpisodeSettings | None = None,
        *,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.settings = settings or EpisodeSettings()
        self._conversations = list(conversations)
        self._tokenizer = tokenizer
        self._template_kwargs = dict(template_kwargs or {})
        mode = self.settings.assistant_loss_mode
        counts = [
            1 if c.text else len(supervised_turns(c.messages, mode)) for c in self._conversations
        ]
        self._ends = list(accumulate(counts))
        self._built: dict[int, list[Episode]] = {}

    @property
    def conversations(self) -> Sequence[ConversationRow]:
        """The conversations."""
        return self._conversations

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | Sequence[Episode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"Episode {index}; there are {len(self)}.")
        row = bisect_right(self._ends, index)
        start = self._ends[row - 1] if row else 0
        return self._episodes(row)[index - start]

    def _episodes(self, row: int) -> list[Episode]:
        if row not in self._built:
            found = self._conversations[row]
            try:
                built = self._episodes_of(found)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{found.where}: {error}") from error
            self._built[row] = [replace(episode, conversation=row) for episode in built]
        return self._built[row]

    def _episodes_of(self, row: ConversationRow) -> list[Episode]:
        if row.text:
            return [text_episode(self._tokenizer, row.text, self.settings.max_length)]
        return build_episodes(
            self._tokenizer,
            row.messages,
            self.settings,
            template_kwargs=self._template_kwargs | ({"tools": row.tools} if row.tools else {}),
            unrelated=row.unrelated,
        )

    def report(self) -> "DatasetReport":
        """Sizes, after building every episode.

        Raises ValueError listing every conversation that the chat template refuses.
        """
        problems = []
        for row in range(len(self._conversations)):
            try:
                self._episodes(row)
            except ValueError as error:
                problems.append(str(error))
        raise_problems(problems, "Conversations that cannot be made into episodes", "")
        views = [episode.both for episode in self]
        report = DatasetReport(len(self._conversations), self.settings, views)
        report.empty_replies = sum(map(self._empty_replies, self._conversations))
        return report

    def _empty_replies(self, row: ConversationRow) -> int:
        """How many of the replies to learn in a conversation say nothing and call no tool."""
        if row.text:
            return 0
        turns = supervised_turns(row.messages, self.settings.assistant_loss_mode)
        said = [row.messages[turn] for turn in turns]
        return sum(
            not str(m.get("content") or "").strip() and not m.get("tool_calls") for m in said
        )


class ForeignMemories(Sequence[Episode]):
    """The same episodes, each with what another conversation wrote: a control that tells what was
    remembered from what was learned about all conversations.

    Args:
        episodes (Sequence[Episode]): Of two conversations at least; see `possible`.
    """

    def __init__(self, episodes: Sequence[Episode]) -> None:
        self._episodes = episodes

    @staticmethod
    def possible(episodes: Sequence[Episode]) -> bool:
        """Whether there is another conversation."""
        return any(episode.conversation != episodes[0].conversation for episode in episodes)

    def __len__(self) -> int:
        return len(self._episodes)

    @overload
    def __getitem__(self, index: int) -> Episode: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Episode]: ...

    def __getitem__(self, index: int | slice) -> Episode | Sequence[Episode]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        episode = self._episodes[index]
        both = replace(episode.both, write=self._written_elsewhere(index))
        return replace(episode, both=both, state_only=both)

    def _written_elsewhere(self, index: int) -> WritePart:
        """The next write part of another conversation; an empty one if none of them has any."""
        own = self._episodes[index].conversation
        others = (self._episodes[(index + i) % len(self)] for i in range(1, len(self)))
        written = (o.both.write for o in others if o.conversation != own)
        return next((write for write in written if len(write.tokens)), NO_WRITE)


class DatasetReport:
    """How large a dataset is and what was cut, for the view ``both``.

    Attributes:
        conversations, episodes (int): How many.
        with_history (int): Episodes that have a write part.
        write_tokens, read_tokens, supervised_tokens (int): Totals, after cutting.
        longest_write, longest_read (int): Tokens of the longest parts, before cutting.
        truncated_writes, truncated_reads (int): Parts that were cut.
        unrelated (int): Episodes in which a reply is to be as without a memory.
        texts, truncated_texts (int): Running texts, and those that were cut.
        empty_replies (int): Replies to learn that have no text.
    """

    def __init__(self, conversations: int, settings: EpisodeSettings, views: list[View]) -> None:
        writes, reads = [view.write for view in views], [view.read for view in views]
        self.settings = settings
        self.conversations, self.episodes = conversations, len(views)
        self.with_history = sum(len(write.tokens) > 0 for write in writes)
        self.write_tokens = sum(len(write.tokens) for write in writes)
        self.read_tokens = sum(len(read.tokens) for read in reads)
        self.supervised_tokens = sum(int((r.labels[1:] != UNSUPERVISED).sum()) for r in reads)
        self.longest_write = max((len(w.tokens) + w.dropped for w in writes), default=0)
        self.longest_read = max((len(r.tokens) + r.dropped for r in reads), default=0)
        self.truncated_writes = sum(write.dropped > 0 for write in writes)
        texts = [view.read for view in views if view.running]
        self.texts, self.truncated_texts = len(texts), sum(text.dropped > 0 for text in texts)
        self.truncated_reads = sum(read.dropped > 0 for read in reads) - self.truncated_texts
        self.unrelated = sum(view.plain is not None for view in views)
        self.empty_replies = 0

    def notes(self) -> list[str]:
        """What a person should know before training: parts cut, nothing to remember or learn."""
        notes = []
        if self.empty_replies:
            notes.append(
                f"{self.empty_replies} of {self.episodes} replies are empty, so they teach the "
                "model to say nothing: leave those conversations out."
            )
        if self.truncated_writes:
            notes.append(
                f"{self.truncated_writes} of {self.with_history} write parts were cut to their "
                f"last {self.settings.max_write_length} tokens (the longest had "
                f"{self.longest_write}): raise max_write_length to keep more."
            )
        if self.truncated_reads:
            notes.append(
                f"{self.truncated_reads} of {self.episodes} read parts were cut to their last "
                f"{self.settings.max_length} tokens (the longest had {self.longest_read}): "
                "raise max_length to keep more."
            )
        if self.truncated_texts:
            notes.append(
                f"{self.truncated_texts} of {self.texts} texts were cut to their first "
                f"{self.settings.max_length} tokens: cut long ones into rows, or raise max_length."
            )
        without = self.episodes - self.texts - self.with_history
        if without:
            notes.append(
                f"{without} of {self.episodes} episodes have nothing to "
                "write, so they teach the memory nothing: give conversations with more turns, or "
                "lower episode_recent_messages."
            )
        return notes
