"""The trainings of a course in several processes: all have a part of each batch.

The course is the first one's, and all else is its work. The others keep nothing.
"""

import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from ...adapters.files import AdapterFiles, read_adapter
from ...adapters.loading import attach_adapter
from ...model.patch import detach
from ...ranks import Ranks
from ...text.rows import ConversationRow
from ..dataset import EpisodeDataset
from ..episode_settings import EpisodeSettings
from ..guard import Diverged
from ..settings import TrainSettings
from ..trainer import Trainer
from .pace import seconds_an_iteration
from .rendering import ChatForm


@dataclass(frozen=True)
class Training:
    """What a process needs to train along.

    Args:
        adapter (AdapterFiles): That the training goes on from.
        train (Sequence[ConversationRow]): To train on.
        valid (Sequence[ConversationRow]): Held out; none: some iterations are timed, no more.
        episodes (EpisodeSettings): How conversations become episodes.
        settings (TrainSettings): How the run goes.
    """

    adapter: AdapterFiles
    train: Sequence[ConversationRow]
    valid: Sequence[ConversationRow]
    episodes: EpisodeSettings
    settings: TrainSettings


def lead(
    ranks: Ranks,
    before: Path,
    settings: TrainSettings,
    train: EpisodeDataset,
    valid: EpisodeDataset | None = None,
) -> None:
    """Have the others train along from the adapter in ``before``, as this process is about to.

    Without ``valid`` some iterations are timed, no more.
    """
    if not ranks.alone:
        rows = () if valid is None else valid.conversations
        adapter = read_adapter(before)
        ranks.share((Training(adapter, train.conversations, rows, train.settings, settings),))


def dismiss(ranks: Ranks) -> None:
    """Let the others go: nothing more is trained."""
    if not ranks.alone:
        ranks.share(())


def follow(model: nn.Module, chat: ChatForm, ranks: Ranks) -> None:
    """Train along for as long as the first process trains.

    Args:
        model (nn.Module): Without a memory, as it is afterwards.
        chat (ChatForm): How its conversations are written.
        ranks (Ranks): The processes.
    """
    asked: tuple[Training, ...]
    while asked := ranks.share():
        training = asked[0]
        attach_adapter(model, training.adapter, training.adapter.base_name)
        try:
            with suppress(Diverged):  # the first one says so
                _along(model, chat, training, ranks)
        finally:
            detach(model)
            model.eval()
            mx.clear_cache()


def _along(model: nn.Module, chat: ChatForm, training: Training, ranks: Ranks) -> None:
    train, valid = (
        EpisodeDataset(
            rows, chat.tokenizer, training.episodes, template_kwargs=chat.template_kwargs
        )
        for rows in (training.train, training.valid)
    )
    if not training.valid:
        seconds_an_iteration(model, train, training.settings, ranks.group)
        return
    with tempfile.TemporaryDirectory(prefix="deltamem-mlx-") as nowhere:
        Trainer(model, train, valid, training.settings, Path(nowhere), resume=True).run()
