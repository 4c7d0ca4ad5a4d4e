"""What an answer from a memory is compared with: other memories, and text in the context."""

import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from ...memory.actions import memory_state
from ...memory.saving import load_memory, save_memory
from ...text.messages import Message
from ..mean import Totals, mean_without, totals
from ..retrieval import retrieved
from ..runner import Runner, State
from .episodes import RecallEpisode


class CellMemories:
    """The memories that the conversations of a cell leave, each written once, when it is needed.

    Others of a conversation are those in which something else was told, without the fact that is
    asked for.

    They are written in the same batches whichever is asked for first, so that a run that is resumed
    has the same memories to the bit.

    Args:
        runner (Runner): Model and adapter.
        episodes (Sequence[RecallEpisode]): Those of the cell.
    """

    def __init__(self, runner: Runner, episodes: Sequence[RecallEpisode]):
        self._runner, self._episodes = runner, episodes
        self._batches: dict[int, list[State]] = {}
        self._told = [json.dumps(episode.tell) for episode in episodes]
        self._first = {told: i for i, told in reversed(list(enumerate(self._told)))}

    @cached_property
    def alone(self) -> bool:
        """Whether one of the conversations has no other."""
        places = range(len(self._told))
        return not all(any(self._is_other(i, index) for i in places) for index in places)

    def own(self, index: int) -> State:
        """The memory of one conversation."""
        size = self._runner.batch_size
        number = index // size
        if number not in self._batches:
            batch = self._episodes[number * size : (number + 1) * size]
            self._batches[number] = self._runner.remember([e.tell for e in batch])
        return self._batches[number][index % size]

    def foreign(self, index: int) -> State:
        """The memory of the next of its others."""
        count = len(self._told)
        later = ((index + i) % count for i in range(1, count))
        return self.own(next(i for i in later if self._is_other(i, index)))

    def mean(self, index: int) -> State:
        """The mean of the memories of all of its others; equal ones count once."""
        left_out = [self.own(i) for i in self._first.values() if not self._is_other(i, index)]
        return mean_without(self._totals, left_out, len(self._first) - len(left_out))

    def _is_other(self, place: int, index: int) -> bool:
        fact = self._episodes[index].fact
        if self._told[place] == self._told[index]:
            return False
        return fact is None or all(m.get("content") != fact for m in self._episodes[place].tell)

    @cached_property
    def _totals(self) -> Totals:
        return totals(self.own(i) for i in self._first.values())


def reloaded(runner: Runner, state: State) -> State:
    """A memory after a file was saved and loaded."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "memory.safetensors"
        save_memory(path, runner.cache(state), runner.model)
        return memory_state(load_memory(path, runner.model))


def retrieved_turns(runner: Runner, episode: RecallEpisode, budget: int) -> list[Message]:
    """The turns of what was told that a retriever finds for the question, in their order.

    Args:
        runner (Runner): Counts tokens.
        episode (RecallEpisode): What was told, and the question.
        budget (int): Tokens of their contents, at most; the best turn is there in any case.
    """
    turns: list[list[Message]] = []
    for message in episode.tell:
        if not turns or (message["role"] == "user" and any(m["role"] == "user" for m in turns[-1])):
            turns.append([])
        turns[-1].append(message)
    texts = ["\n".join(str(m["content"]) for m in turn) for turn in turns]
    sizes = [len(runner.tokens(text)) for text in texts]
    chosen = retrieved(texts, sizes, episode.question, budget)
    return [message for i in chosen for message in turns[i]]
