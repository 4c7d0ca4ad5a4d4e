"""What an adapter is worth: the evaluations, on names, values and wordings that no training saw."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from ...adapters.loading import fingerprint
from ...evals import perplexity
from ...evals.benchmarks.reader import Reader
from ...evals.journal import Journal
from ...evals.passages import Passage, Text, passages
from ...evals.recall.builtin_data import builtin_episodes
from ...evals.recall.episodes import Cell, RecallEpisode, in_cells
from ...evals.recall.facts import fact_episodes
from ...evals.recall.recall import recall
from ...evals.recall.scores import scores
from ...evals.runner import Runner
from ...evals.silence import silence as s
from ...evals.silence.questions import QUESTIONS
from ...text.rows import ConversationRow
from .rendering import ChatForm
from .viewing import Viewer

CELLS = (
    Cell("told", 1, 0),
    Cell("told", 2, 0),
    Cell("told", 4, 0),
    Cell("told", 4, 8),
    Cell("updated", 4, 0),
    Cell("never", 4, 0),
)
CONDITIONS = ("memory", "none", "foreign", "mean", "context")
MAX_TOKENS, BATCH = 16, 16
WINDOW = 512

Worth = dict[str, Any]


@dataclass(frozen=True)
class MeasureSizes:
    """How much is measured.

    Args:
        questions (int): Of each kind, of recall.
        windows (int): Passages whose perplexity is taken, at most.
        histories (int): Before the questions that have nothing to do with them, of each kind.
        chat_tokens (int): Length of a chat among those.
        cells (tuple[Cell, ...]): Kinds of questions of recall.
    """

    questions: int
    windows: int
    histories: int
    chat_tokens: int
    cells: tuple[Cell, ...] = CELLS


class Measuring:
    """Measures a model with an adapter; what a folder holds already is not measured again.

    Args:
        model (nn.Module): With an adapter.
        chat (ChatForm): How its conversations are written.
        builtin (bool): It speaks the built-in model's language, not English.
        wanted (MeasureSizes): How much.
        folder (Path): For the answers.
        seed (int): Of what is made up.
    """

    def __init__(
        self,
        model: nn.Module,
        chat: ChatForm,
        builtin: bool,
        wanted: MeasureSizes,
        folder: Path,
        seed: int,
    ):
        self.model, self.chat, self.builtin, self.wanted = model, chat, builtin, wanted
        self.folder, self.seed = folder, seed

    def all(self, viewer: Viewer, talk: Sequence[ConversationRow]) -> Worth:
        """Recall, perplexity and silence, as JSON values.

        Args:
            viewer (Viewer): Told how it goes.
            talk (Sequence[ConversationRow]): Held-out conversations of the course, whose perplexity
              is taken where the model speaks no English.
        """
        return {
            "recall": self._recall(viewer),
            "perplexity": self._perplexity(viewer, talk),
            "silence": self._silence(viewer),
        }

    def _journal(self, task: str) -> Journal:
        settings = {
            "task": task,
            "fingerprint": fingerprint(self.model),
            **asdict(self.wanted),
            "seed": self.seed,
        }
        return Journal(self.folder / task, settings)

    def _recall(self, viewer: Viewer) -> list[dict[str, Any]]:
        each = self.wanted.questions
        episodes: Sequence[RecallEpisode]
        if self.builtin:
            episodes = [e for e in builtin_episodes() if e.cell in self.wanted.cells]
        else:
            episodes = list(fact_episodes(each, seed=self.seed, cells=self.wanted.cells))
        cells = in_cells(episodes, each)
        runner = Runner(
            self.model,
            self.chat.tokenizer,
            batch_size=BATCH,
            max_tokens=MAX_TOKENS,
            template_kwargs=self.chat.template_kwargs,
        )
        journal = self._journal("recall")
        total = len(CONDITIONS) * sum(map(len, cells.values()))
        with viewer.counting("answering", total) as tell:
            rows = recall(runner, cells, conditions=CONDITIONS, journal=journal, on_answers=tell)
        found = scores(rows, seed=self.seed)
        journal.finish({"cells": found})
        return found

    def _perplexity(self, viewer: Viewer, talk: Sequence[ConversationRow]) -> dict[str, Any]:
        found = self._passages(talk)
        journal = self._journal("perplexity")
        with viewer.counting("predicting", 2 * len(found)) as tell:
            rows = perplexity.losses(self.model, found, batch_size=4, journal=journal, tell=tell)
        result = perplexity.summary(rows, seed=self.seed) | {"passages": len(found)}
        journal.finish(result)
        return result

    def _passages(self, talk: Sequence[ConversationRow]) -> list[Passage]:
        """Windows of Python's documentation, which no stage is trained on."""
        if self.builtin:
            return passages(talk, self.chat.tokenizer, limit=16 * self.wanted.windows)
        from pydoc_data.topics import topics

        names = random.Random(self.seed).sample(sorted(topics), len(topics))
        text = Text("\n\n".join(topics[name] for name in names), "Python's documentation")
        return passages(
            [text], self.chat.tokenizer, max_length=WINDOW, limit=self.wanted.windows, seed=0
        )

    def _silence(self, viewer: Viewer) -> list[dict[str, Any]]:
        reader = Reader(self.model, self.chat.tokenizer, template_kwargs=self.chat.template_kwargs)
        count, tokens = self.wanted.histories, self.wanted.chat_tokens
        questions: Mapping[str, Sequence[str]]
        if self.builtin:
            episodes = builtin_episodes()
            questions = {"talk": s.talk_of(episodes)}
            told = s.histories_of(episodes, reader, count, tokens=tokens)
        else:
            each = max(1, min(8, self.wanted.questions // 8))
            questions = {kind: texts[:each] for kind, texts in QUESTIONS.items()}
            told = s.histories(reader, count, tokens=tokens, seed=self.seed)
        journal = self._journal("silence")
        asked = len(s.HISTORIES) * sum(map(len, questions.values()))
        with viewer.counting("asking", asked) as tell:
            rows = s.silence(reader, questions, told, journal=journal, tell=tell)
        found = s.summary(rows, seed=self.seed)
        journal.finish({"scores": found})
        return found
