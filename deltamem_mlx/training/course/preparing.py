"""Before a course: which one it is, how long its conversations are, and how fast the machine is."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import mlx.nn as nn

from ...text.rows import ConversationRow
from ..dataset import EpisodeDataset
from .directions import head_rows
from .language import Language
from .pace import MachinePace, measured_pace
from .plan import CoursePlan, plan_for, seconds_of
from .rendering import ChatForm
from .rows import stage_rows
from .stages import Stage
from .stock import Stock, Wanted, begin, portions

SAMPLE = 32  # conversations of a stage whose sizes are looked at


class Expected(NamedTuple):
    """What a course will do.

    Attributes:
        plan (CoursePlan): What.
        seconds (Mapping[str, float]): About how long each step takes.
    """

    plan: CoursePlan
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Preparation:
    """What is known before a course.

    Args:
        model (nn.Module): Without a memory.
        chat (ChatForm): How its conversations are written.
        language (Language): What they are in.
        stages (Sequence[Stage]): The trainings.
        seed (int): Of everything.
        own (Sequence[ConversationRow]): Conversations that the user gave.
        grad_checkpoint (bool): Train with less memory and more time.
    """

    model: nn.Module
    chat: ChatForm
    language: Language
    stages: Sequence[Stage]
    seed: int
    own: Sequence[ConversationRow]
    grad_checkpoint: bool = False

    def settings(self) -> dict[str, object]:
        """What tells the course from another, as JSON values."""
        weights = head_rows(self.model, range(8)).tobytes()
        rows = [
            [row.messages, sorted(row.unrelated), *filter(None, [row.text])] for row in self.own
        ]
        own = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] if rows else None
        return {
            "model": getattr(self.model, "model_type", None),
            "layers": len(self.model.layers),
            "weights": hashlib.sha256(weights).hexdigest()[:16],
            "seed": self.seed,
            "data": own,
            "template": dict(self.chat.template_kwargs),
        }

    def notes(self) -> list[str]:
        """What a person should know of their own conversations.

        Raises ValueError now, not in hours, if the chat template refuses one.
        """
        if not self.own:
            return []
        notes = [self._dataset(stage, self.own).report().notes() for stage in self.stages]
        return list(dict.fromkeys(chain(*notes)))

    def pace(self) -> MachinePace:
        """How fast the machine is, measured."""
        stage, stock = self.stages[0], self._stock()
        rows = self._rows(stage, stock, 4 * stage.batch_size)
        asked = [said for said, _ in stock.train.asked]
        settings = stage.settings(8, 0, grad_checkpoint=self.grad_checkpoint)
        return measured_pace(self.model, self.chat, self._dataset(stage, rows), settings, asked)

    def expected(self, hours: float, pace: MachinePace, plan: CoursePlan | None) -> Expected:
        """What is done in so many hours, or by a plan that is given."""
        sizes = self._sizes()
        plan = plan or plan_for(hours, pace, sizes, self.stages)
        begun = begin(self.language, plan.wanted, (), self.seed)
        there = Wanted(len(begun.talk), len(begun.texts), len(begun.asked))
        return Expected(plan, seconds_of(plan, pace, sizes, there))

    def _sizes(self) -> list[float]:
        """Tokens a conversation of each stage."""
        stock, sizes = self._stock(), []
        for stage in self.stages:
            rows = self._rows(stage, stock, SAMPLE)
            report = self._dataset(stage, rows).report()
            sizes.append((report.write_tokens + report.read_tokens) / SAMPLE)
        return sizes

    def _rows(self, stage: Stage, stock: Stock, count: int) -> list[ConversationRow]:
        return stage_rows(
            stage,
            self.language,
            stock,
            count,
            seed=self.seed,
            openings=self.chat.openings(),
            own=self.own,
        )

    def _stock(self) -> Stock:
        """Something like what the model will write."""
        begun = begin(self.language, Wanted(8, 8, 24), (), self.seed)
        turns = [(text, "It is as it is, and that is all I can say.") for text in begun.asked]
        train, valid = portions(begun, turns, [], turns)
        return Stock(train, valid, {q: "I am not sure about that." for _, q in begun.strangers}, [])

    def _dataset(self, stage: Stage, rows: Sequence[ConversationRow]) -> EpisodeDataset:
        kwargs: Mapping[str, Any] = self.chat.template_kwargs
        return EpisodeDataset(rows, self.chat.tokenizer, stage.episodes, template_kwargs=kwargs)
