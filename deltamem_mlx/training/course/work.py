"""What the steps of a course share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ...model.patch import detach, is_attached
from ...ranks import Ranks
from ...text.rows import ConversationRow
from ..dataset import EpisodeDataset
from ..settings import TrainSettings
from ..start import adapter_from
from .choosing import Judge
from .language import Language
from .plan import CoursePlan
from .rendering import ChatForm
from .rows import stage_rows
from .stages import Stage
from .stock import Stock
from .viewing import Viewer

SEEDS = 100  # of a course, for its parts


@dataclass
class Work:
    """A course at work.

    Args:
        model (nn.Module): Without a memory, between the steps.
        chat (ChatForm): How its conversations are written.
        language (Language): What they are in.
        builtin (bool): The model is the built-in one.
        name (str): The model's name.
        plan (CoursePlan): What is done.
        seed (int): Of everything.
        own (Sequence[ConversationRow]): Conversations that the user gave.
        viewer (Viewer): Told how it goes.
        grad_checkpoint (bool): Take less memory and more time.
        stock (Stock): What the conversations are made of, once it is written.
        before (Path): The folder of the adapter that the next step goes on from.
        seconds (Mapping[str, float]): How long the trainings may take, by name, which decides their
            iterations; empty: as many as are planned.
        ranks (Ranks): The processes that train together, of which this is the first.
    """

    model: nn.Module
    chat: ChatForm
    language: Language
    builtin: bool
    name: str
    plan: CoursePlan
    seed: int
    own: Sequence[ConversationRow]
    viewer: Viewer
    grad_checkpoint: bool = False
    stock: Stock | None = None
    before: Path | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    ranks: Ranks = field(default_factory=Ranks)

    def seed_of(self, part: int) -> int:
        """The seed of a part of the course."""
        return SEEDS * self.seed + part

    def episodes(self, stage: Stage, count: int, *, held_out: bool = False) -> EpisodeDataset:
        """So many conversations of a stage, tokenized when they are needed."""
        assert self.stock is not None
        rows = stage_rows(
            stage,
            self.language,
            self.stock,
            count,
            seed=self.seed_of(10 + self.plan.stages.index(stage)),
            held_out=held_out,
            openings=self.chat.openings(),
            own=self.own,
        )
        return EpisodeDataset(
            rows, self.chat.tokenizer, stage.episodes, template_kwargs=self.chat.template_kwargs
        )

    def settings(self, stage: Stage, halved: int = 0, iters: int | None = None) -> TrainSettings:
        """How a stage is trained, its learning rate halved so many times.

        ``iters`` are its iterations; None: those of the plan.
        """
        place = self.plan.stages.index(stage)
        settings = stage.settings(
            self.plan.iters[place] if iters is None else iters,
            self.seed_of(place),
            grad_checkpoint=self.grad_checkpoint,
        )
        return replace(settings, learning_rate=settings.learning_rate / 2**halved)

    def held_out(self, stage: Stage) -> EpisodeDataset:
        """Conversations of a stage that are not trained on."""
        return self.episodes(stage, self.plan.judged, held_out=True)

    def judge(self, stage: Stage) -> Judge:
        """Tells adapters apart on those."""
        return Judge(self.held_out(stage), self.settings(stage))

    @contextmanager
    def adapted(self, folder: Path) -> Iterator[nn.Module]:
        """Within this context the model has the adapter in a folder."""
        adapter_from(self.model, folder, base_model=self.name)
        with self.plain_afterwards():
            yield self.model

    @contextmanager
    def plain_afterwards(self) -> Iterator[None]:
        """After this context the model has no memory."""
        try:
            yield
        finally:
            if is_attached(self.model):
                detach(self.model)
            self.model.eval()
            mx.clear_cache()
