"""A course from its first step to its card, which goes on where it was stopped."""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...adapters.files import read_adapter, refuse_to_replace, write_adapter
from ...files import expanded, locked_folder, write_text
from ...model.names import BUILTIN, base_model_name
from ...ranks import Ranks
from ...text.rows import ConversationRow
from ...text.thinking import at_once
from ..folder import refuse_to_replace as refuse_run
from . import steps
from .in_english import English
from .language import Language
from .ledger import (
    COURSE,
    adapter_there,
    begin_step,
    end_step,
    finished_step,
    open_course,
    write_ledger,
)
from .little import Little
from .pace import MachinePace
from .page import card, figures_text
from .plan import CoursePlan, training_seconds
from .preparing import Expected, Preparation
from .rendering import ChatForm
from .stages import ENGLISH, LITTLE, Stage
from .together import dismiss, follow
from .viewing import Planned, Viewer
from .work import Work

FOLDER, CARD = "course", "README.md"
HOURS = 3.0


class CourseStep(NamedTuple):
    """A step: what it does, and whether it leaves an adapter."""

    name: str
    does: str
    run: Callable[[Work, Path], Mapping[str, Any]]
    adapter: bool
    stage: Stage | None = None


class Finished(NamedTuple):
    """The end of a course.

    Attributes:
        folder (Path): Of the adapter.
        page (str): What it is worth, in Markdown.
        results (dict[str, Any]): What every step wrote down, by name.
    """

    folder: Path
    page: str
    results: dict[str, Any]


class Course:
    """The package's own course for a model.

    Args:
        model (nn.Module): Without a memory.
        tokenizer (TokenizerWrapper): With a chat template.
        folder (Path): For the adapter, and for the course in a folder of its own.
        name (str): The model's name.
        hours (float): How long it may take, about.
        seed (int): Of everything.
        own (Sequence[ConversationRow]): Conversations to train on beside the course's.
        template_kwargs (Mapping[str, Any]): For the chat template.
        overwrite (bool): Begin anew in place of what is in the folder.
        grad_checkpoint (bool): Take less memory and more time.
        plan (CoursePlan): What to do. Default: what fits the hours.
        viewer (Viewer): Told how it goes.
        ranks (Ranks): The processes of mlx.launch that train together, each with the whole model.
            All else is done by the first, in whose folder everything is.

    Raises:
        FileExistsError: If the folder holds an adapter that is not this course's.
        ValueError: If it holds a course with other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        folder: str | Path,
        *,
        name: str,
        hours: float = HOURS,
        seed: int = 0,
        own: Sequence[ConversationRow] = (),
        template_kwargs: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        grad_checkpoint: bool = False,
        plan: CoursePlan | None = None,
        viewer: Viewer | None = None,
        ranks: Ranks | None = None,
    ):
        self.model = model
        self.chat = ChatForm(tokenizer, at_once(tokenizer, dict(template_kwargs or {})))
        self.folder, self.name, self.hours, self.seed = expanded(folder), name, hours, seed
        self.own, self.given, self.viewer = list(own), plan, viewer or Viewer()
        self.overwrite, self.grad_checkpoint = overwrite, grad_checkpoint
        self.ranks = ranks or Ranks()
        self.builtin = base_model_name(name) == BUILTIN
        self.language = _language(self.builtin)

    def run(self) -> Finished | None:
        """Take all steps that are not done yet; None in a process that trained along.

        Raises:
            Stopped: At Ctrl-C, with everything saved.
            FolderInUse: If another process is at the same course.
        """
        if self.ranks.rank:
            follow(self.model, self.chat, self.ranks)
            return None
        refuse_foreign(self.folder, overwrite=self.overwrite)
        with locked_folder(self.folder / FOLDER, "another train"):
            if self.overwrite:
                _clear(self.folder / FOLDER)
            try:
                found = self._run()
            except steps.Stopped:
                dismiss(self.ranks)
                raise
            dismiss(self.ranks)
            return found

    def _run(self) -> Finished:
        plan, seconds = self._expected()
        work = Work(
            self.model,
            self.chat,
            self.language,
            self.builtin,
            self.name,
            plan,
            self.seed,
            self.own,
            self.viewer,
            self.grad_checkpoint,
            seconds={} if self.given is not None else training_seconds(self.hours, plan.stages),
            ranks=self.ranks,
        )
        found = self._steps(plan)
        rows = self._rows(found, plan, seconds)
        self.viewer.plan(rows)
        results: dict[str, Any] = {}
        expected = spent = 0.0
        for number, (step, row) in enumerate(zip(found, rows, strict=True), start=1):
            left = sum(r.seconds for r in rows[number - 1 :] if not r.done)
            slower = spent / expected if expected > left / 10 else 1.0
            results[step.name] = self._take(work, step, row, number, left * slower)
            if not row.done:
                expected, spent = expected + row.seconds, spent + results[step.name]["seconds"]
        page = figures_text(results, rows, self.seed)
        return self._finish(work, page, results)

    def _expected(self) -> Expected:
        """What is done; from the pace that was measured when the course began."""
        stages: Sequence[Stage] = LITTLE if self.builtin else ENGLISH
        if self.given is not None:
            stages = self.given.stages
        about = Preparation(
            self.model,
            self.chat,
            self.language,
            stages,
            self.seed,
            self.own,
            self.grad_checkpoint,
        )
        for text in about.notes():
            self.viewer.note(text)
        plan = None if self.given is None else repr(self.given)
        settings = about.settings() | {
            "hours": self.hours,
            "grad_checkpoint": self.grad_checkpoint,
            "plan": plan,
        }
        if not self.ranks.alone:
            settings["processes"] = self.ranks.size
        ledger = open_course(self.folder / FOLDER, settings)
        if "pace" not in ledger:
            pace = about.pace()  # of this process
            ledger["pace"] = pace._replace(trained=self.ranks.size * pace.trained)._asdict()
            write_ledger(self.folder / FOLDER / COURSE, ledger)
        return about.expected(self.hours, MachinePace(**ledger["pace"]), self.given)

    def _steps(self, plan: CoursePlan) -> list[CourseStep]:
        found = [
            CourseStep("write", "the model writes talk and texts", steps.write, False),
            CourseStep("start", "first weights, in closed form", steps.start, True),
        ]
        for i, stage in enumerate(plan.stages):
            if i == 1:
                quiet = partial(steps.quiet, stage=stage)
                does = "gates and queries on ordinary text"
                found.append(CourseStep("quiet", does, quiet, True))
            train = partial(steps.train, stage=stage)
            found.append(CourseStep(stage.name, stage.teaches, train, True, stage))
        return [
            *found,
            CourseStep("measure", "what it is worth", steps.measure, True),
        ]

    def _place(self, step: CourseStep, number: int) -> Path:
        return self.folder / FOLDER / f"{number}-{step.name}"

    def _rows(
        self, found: Sequence[CourseStep], plan: CoursePlan, seconds: Mapping[str, float]
    ) -> list[Planned]:
        rows: list[Planned] = []
        given: str | None = ""
        for number, step in enumerate(found, start=1):
            done = finished_step(self._place(step, number), given) if given is not None else None
            iters = plan.iters[plan.stages.index(step.stage)] if step.stage else 0
            rate = step.stage.learning_rate if step.stage else 0.0
            many = iters * step.stage.batch_size if step.stage else 0
            takes = seconds.get(step.name, 0.0)
            rows.append(Planned(step.name, step.does, many, iters, rate, takes, done is not None))
            if step.adapter or done is None:
                given = done["made"] if done else None
        return rows

    def _take(
        self, work: Work, step: CourseStep, row: Planned, number: int, left: float
    ) -> Mapping[str, Any]:
        place = self._place(step, number)
        given = "" if work.before is None else adapter_there(work.before)
        done = finished_step(place, given)
        if done is None:
            self.viewer.begin(row, number, left)
            begin_step(place, given)
            began = time.perf_counter()
            result = step.run(work, place)
            took = max(time.perf_counter() - began, result.get("seconds", 0.0))
            end_step(place, given, took, result)
            done = finished_step(place, given)
            assert done is not None
            self.viewer.end(row, done["result"], took)
        elif step.name == "write":
            step.run(work, place)
        if step.adapter:
            work.before = place
        return done

    def _finish(self, work: Work, page: str, results: dict[str, Any]) -> Finished:
        assert work.before is not None
        adapter = read_adapter(work.before)
        write_adapter(steps.rounded(adapter), self.folder)
        write_text(self.folder / CARD, card(adapter, self.folder, page))
        return Finished(self.folder, page, results)


def _language(builtin: bool) -> Language:
    return Little() if builtin else English()


def refuse_foreign(folder: Path, *, overwrite: bool) -> None:
    """Raise if a course may not write its adapter to ``folder``.

    Raises:
        FileExistsError: If the folder holds an adapter or a run that is no course's.
    """
    folder = expanded(folder)
    if (folder / FOLDER / COURSE).is_file():
        return refuse_to_replace(folder, "mlx-lm", overwrite=overwrite)
    refuse_run(folder, overwrite=overwrite)


def _clear(folder: Path) -> None:
    """Remove an earlier course; the folder itself is locked, and stays."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (folder / COURSE).unlink(missing_ok=True)  # last: it says whose steps those are
