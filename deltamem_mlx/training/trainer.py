"""The training loop: updates, validation, checkpoints, and going on from one.

mlx-lm's own loop neither clips gradients nor resumes, so this is another.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.callbacks import TrainingCallback
from mlx_lm.utils import maybe_set_recommended_wired_limit

from ..files import Witness, expanded
from .batching import EpisodeBatch, batches
from .checkpoint import STATE_FILE, identity_of, save_checkpoint
from .dataset import ForeignMemories
from .episodes import Episode
from .folder import begin_run, clear_leftovers, has_checkpoint, one_run, refuse_to_replace
from .guard import Diverged, check_loss, interruptible
from .report import Info, Listener, Metrics, draw_curve, kl_info, train_info
from .resume import begin
from .settings import TrainSettings
from .update import Figures, updater_of
from .validation import evaluate


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        iteration (int): Batches trained on.
        finished (bool): Whether it came to its end, and was not interrupted.
        train_loss, val_loss (float): The last reported.
        val_loss_without, val_loss_foreign (float): The validation loss with an empty memory, and
          with that of another conversation; None of the latter if one conversation is held out.
        seconds (float): Spent in all, also before a resume.
        peak_memory (int): Bytes, of this process.
        trained (int): Batches trained on since the run began or went on.
    """

    iteration: int
    finished: bool
    train_loss: float | None
    val_loss: float | None
    val_loss_without: float | None
    val_loss_foreign: float | None
    seconds: float
    peak_memory: int
    trained: int = 0


class Trainer:
    """Trains the adapter of a model, and keeps ``folder`` loadable all the time.

    Args:
        model (nn.Module): A model with an adapter: fresh, or one to train further.
        train (Sequence[Episode]): Episodes, usually an `EpisodeDataset`.
        valid (Sequence[Episode]): Held-out episodes; may be empty.
        settings (TrainSettings): How the run goes.
        folder (Path): For the adapter, checkpoints and reports.
        listeners (Sequence[TrainingCallback]): Told how it goes, in the first process only.
        resume (bool): Go on from the state in the folder, if there is one.
        overwrite (bool): Begin anew in place of an adapter or a run that the folder holds.

    Raises:
        ValueError: If there is nothing to learn, or the folder holds a run with other settings and
          ``resume`` is set.
        FileExistsError: If the folder holds a run or an adapter, and neither is set.
    """

    def __init__(
        self,
        model: nn.Module,
        train: Sequence[Episode],
        valid: Sequence[Episode],
        settings: TrainSettings,
        folder: str | Path,
        *,
        listeners: Sequence[TrainingCallback] = (),
        resume: bool = False,
        overwrite: bool = False,
    ) -> None:
        if not len(train):
            raise ValueError("There are no episodes to train on.")
        for name, episodes in (("train on", train), ("validate on", valid)):
            if len(episodes) and all(episode.both.unrelated for episode in episodes):
                raise ValueError(
                    f"All conversations to {name} are marked as unrelated to their history, so "
                    "there is nothing to remember. Add some that depend on it."
                )
        self.model, self.train, self.valid = model, train, valid
        self.settings, self.folder = settings, expanded(folder)
        self.group = mx.distributed.init()
        if self._first:
            refuse_to_replace(self.folder, resume=resume, overwrite=overwrite)
        self._witness = Witness()
        self._witness.note(self.folder / STATE_FILE)
        self._earlier: list[Path] = []  # copies of a run in whose place this one begins
        self.updater = updater_of(model, settings, self.group)
        self.identity = identity_of(model, settings, train, self.updater.part[1])
        self.progress, self.resumed = begin(self.updater, self.folder, self.identity, resume)
        self._stream = self._batches()
        self._saved = self.progress.update if self.resumed else -1
        self._begun_at = self.iteration
        self._stop = False
        self.listeners = list(listeners) if self._first else []

    @property
    def _first(self) -> bool:
        return self.group.rank() == 0

    @property
    def iteration(self) -> int:
        """Batches trained on."""
        return self.progress.update * self.settings.grad_accumulation_steps

    @property
    def iterations(self) -> int:
        """Batches in the whole run: as many as make whole updates."""
        return self.settings.updates * self.settings.grad_accumulation_steps

    def _batches(self) -> Iterator[EpisodeBatch]:
        s, (rank, world_size) = self.settings, self.updater.part
        return batches(
            self.train,
            s.batch_size,
            seed=s.seed,
            start_step=self.iteration,
            state_only_prob=s.state_only_prob,
            no_memory_prob=s.no_memory_prob,
            multiple=s.pad_multiple,
            rank=rank,
            world_size=world_size,
        )

    def run(self) -> Outcome:
        """Train to the end, or until interrupted; a checkpoint is written in either case.

        Raises:
            Diverged: If the loss or the weights are no finite numbers any more, or the loss
              exploded. The last checkpoint stays.
            FolderInUse: If another process trains in the folder.
            FileChanged: If another process has trained in it since this began.
        """
        with one_run(self.folder) if self._first else nullcontext():
            return self._run()

    def _run(self) -> Outcome:
        maybe_set_recommended_wired_limit()
        mx.reset_peak_memory()
        if self._first:
            self._witness.check(self.folder / STATE_FILE)
            clear_leftovers(self.folder)
            if not self.resumed:
                self._earlier = begin_run(self.folder)
            self.listeners.insert(0, Metrics(self.folder, self.iteration))
        with interruptible(self._interrupt):
            if not self.resumed:
                self._validate()
                self._save()
            self._loop()
        self.model.eval()
        if self._first:
            draw_curve(self.folder)
        p = self.progress
        return Outcome(
            iteration=self.iteration,
            finished=self.iteration == self.iterations,
            train_loss=p.train_loss,
            val_loss=p.val_loss,
            val_loss_without=p.val_loss_without,
            val_loss_foreign=p.val_loss_foreign,
            seconds=p.seconds,
            peak_memory=mx.get_peak_memory(),
            trained=self.iteration - self._begun_at,
        )

    def _interrupt(self) -> None:
        self._stop = True
        self._tell("on_interrupt")

    def _loop(self) -> None:
        s, window = self.settings, []
        while self.iteration < self.iterations and not self.updater.any(self._stop):
            window.append(self._update())
            self._tell("on_step", self._info(window[-1:]))
            if self._due(s.steps_per_report):
                info = self._info(window)
                self.progress.train_loss = info["train_loss"]
                self._tell("on_train_loss_report", info)
                window.clear()
            if self._due(s.steps_per_eval):
                self._validate()
            if self._due(s.save_every):
                self._save(snapshot=True)
        if self._saved != self.progress.update:
            self._save()

    def _info(self, window: Sequence[tuple[Figures, float]]) -> Info:
        return train_info(
            [figures for figures, _ in window],
            iterations=len(window) * self.settings.grad_accumulation_steps,
            seconds=sum(seconds for _, seconds in window),
        ) | {"iteration": self.iteration, "trained_tokens": self.progress.trained_tokens}

    def _due(self, every: int) -> bool:
        """Whether the last update passed a multiple of ``every`` iterations, or was the last."""
        before = self.iteration - self.settings.grad_accumulation_steps
        at_end = self.iteration == self.iterations
        return at_end or self.iteration // every > before // every

    def _update(self) -> tuple[Figures, float]:
        """One update and the seconds it took."""
        start, s, p = time.perf_counter(), self.settings, self.progress
        parts = list(islice(self._stream, s.grad_accumulation_steps))
        figures = self.updater.update(parts, p.update)
        try:
            check_loss(figures, p, self.iteration + len(parts))
        except Diverged as error:
            raise Diverged(f"{error}. {self._advice()}") from None
        if mx.get_cache_memory() > s.clear_cache_threshold:
            mx.clear_cache()
        seconds = time.perf_counter() - start
        p.update += 1
        p.trained_tokens += figures.tokens
        p.seconds += seconds
        return figures, seconds

    def _advice(self) -> str:
        done = max(self._saved, 0) * self.settings.grad_accumulation_steps
        return (
            f"The checkpoint of iteration {done} stays in {self.folder}. Begin another run with a "
            "lower --learning-rate, or --max-grad-norm, in another --adapter-path; "
            "--resume-adapter-file takes the weights along."
        )

    def _validate(self) -> None:
        if not len(self.valid):
            return
        start = time.perf_counter()
        p = self.progress
        if p.val_loss_without is None:
            # Reading an empty memory, and writing nothing, does not depend on the adapter.
            p.val_loss_without = self.evaluate(self.valid, "no_memory").ce
        figures = self.evaluate(self.valid)
        p.val_loss = figures.ce
        if ForeignMemories.possible(self.valid):
            p.val_loss_foreign = self.evaluate(ForeignMemories(self.valid)).ce
        info = kl_info("val", [figures]) | {
            "iteration": self.iteration,
            "val_loss": figures.ce,
            "val_loss_without": p.val_loss_without,
            "val_loss_foreign": p.val_loss_foreign,
            "val_beta": figures.write_beta,
            "val_state_norm": figures.state_norm,
            "val_time": time.perf_counter() - start,
        }
        self._tell("on_val_loss_report", info)

    def evaluate(
        self,
        episodes: Sequence[Episode],
        mode: str = "both",
        *,
        most: int | None = None,
    ) -> Figures:
        """Figures of ``val_batches`` batches of the episodes, or another number of them."""
        return evaluate(
            self.updater,
            episodes,
            mode=mode,
            most=self.settings.val_batches if most is None else most,
            on_batch=lambda *counts: self._tell("on_validation_batch", *counts),
        )

    def _save(self, snapshot: bool = False) -> None:
        """A checkpoint, by the first process."""
        if self._first:
            number, state = self.iteration if snapshot else None, self.updater.state()
            try:
                save_checkpoint(
                    self.folder, self.model, state, self.progress, self.identity, number
                )
            except FloatingPointError as error:
                raise Diverged(f"{error}. {self._advice()}") from error
            has_checkpoint(self.folder, self._earlier)
            self._earlier = []
        self._saved = self.progress.update
        self._tell("on_save", self.folder, self.iteration)

    def _tell(self, what: str, *args: object) -> None:
        for listener in self.listeners:
            if isinstance(listener, Listener) or what.endswith("_report"):
                getattr(listener, what)(*args)
