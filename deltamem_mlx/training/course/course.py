"""A course from its first step to its card, which goes on where it was stopped."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...adapters.files import read_adapter, refuse_to_replace, write_adapter
from ...files import expanded, locked_folder, write_text
from ...model.patch import BUILTIN, base_model_name
from ...text.rows import ConversationRow
from ..dataset import EpisodeDataset
from ..folder import refuse_to_replace as refuse_run
from . import steps
from .directions import head_rows
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
from .pace import MachinePace, measured_pace
from .page import card, figures_text
from .plan import CoursePlan, plan_for, seconds_of
from .rendering import ChatForm
from .rows import stage_rows
from .stages import ENGLISH, LITTLE, Stage
from .stock import Stock, Wanted, begin, portions
from .viewing import Planned, Viewer
from .work import Work

FOLDER, CARD = "course", "README.md"
HOURS = 3.0
SAMPLE = 32  # conversations of a stage whose sizes are looked at


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
    ):
        self.model, self.chat = model, ChatForm(tokenizer, dict(template_kwargs or {}))
        self.folder, self.name, self.hours, self.seed = expanded(folder), name, hours, seed
        self.own, self.given, self.viewer = list(own), plan, viewer or Viewer()
        self.overwrite, self.grad_checkpoint = overwrite, grad_checkpoint
        self.builtin = base_model_name(name) == BUILTIN
        self.language = _language(self.builtin)

    def run(self) -> Finished:
        """Take all steps that are not done yet.

        Raises:
            Stopped: At Ctrl-C, with everything saved.
            FolderInUse: If another process is at the same course.
        """
        refuse_foreign(self.folder, overwrite=self.overwrite)
        with locked_folder(self.folder / FOLDER, "another train"):
            if self.overwrite:
                _clear(self.folder / FOLDER)
            return self._run()

    def _run(self) -> Finished:
        ledger = open_course(self.folder / FOLDER, self._settings())
        plan, seconds = self._planned(ledger)
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
        )
        found = self._steps(plan)
        rows = self._rows(found, plan, seconds)
        self.viewer.plan(rows)
        results: dict[str, Any] = {}
        for number, (step, row) in enumerate(zip(found, rows, strict=True), start=1):
            left = sum(r.seconds for r in rows[number - 1 :] if not r.done)
            results[step.name] = self._take(work, step, row, number, left)
        page = figures_text(results, rows, self.seed)
        return self._finish(work, page, results)

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
            CourseStep("close", "write gates, rounding", steps.close, True),
            CourseStep("measure", "what it is worth", steps.measure, False),
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
            took = result.get("seconds", time.perf_counter() - began)
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
        rounded = {name: x.astype(mx.float16) for name, x in adapter.tensors.items()}
        write_adapter(replace(adapter, tensors=rounded), self.folder)
        write_text(self.folder / CARD, card(adapter, self.folder, page))
        return Finished(self.folder, page, results)

    def _settings(self) -> dict[str, object]:
        """What tells this course from another."""
        weights = head_rows(self.model, range(8)).tobytes()
        rows = [[row.messages, sorted(row.unrelated)] for row in self.own]
        own = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16] if rows else None
        return {
            "model": getattr(self.model, "model_type", None),
            "layers": len(self.model.layers),
            "weights": hashlib.sha256(weights).hexdigest()[:16],
            "hours": self.hours,
            "seed": self.seed,
            "data": own,
            "template": dict(self.chat.template_kwargs),
            "plan": None if self.given is None else repr(self.given),
        }

    def _planned(self, ledger: dict[str, Any]) -> tuple[CoursePlan, Mapping[str, float]]:
        """The plan, from the pace that was measured when the course began."""
        stages: Sequence[Stage] = LITTLE if self.builtin else ENGLISH
        if self.given is not None:
            stages = self.given.stages
        sizes, asked = self._sizes(stages)
        if "pace" not in ledger:
            ledger["pace"] = self._pace(stages[0], asked)._asdict()
            write_ledger(self.folder / FOLDER / COURSE, ledger)
        pace = MachinePace(**ledger["pace"])
        plan = self.given or plan_for(self.hours, pace, sizes, stages)
        return plan, seconds_of(plan, pace, sizes)

    def _stock(self) -> Stock:
        """Something like what the model will write, to tell how long conversations are."""
        begun = begin(self.language, Wanted(8, 0, 24), (), self.seed)
        turns = [(text, "It is as it is, and that is all I can say.") for text in begun.asked]
        train, valid = portions(begun, turns, [], turns)
        return Stock(train, valid, {q: "I am not sure about that." for _, q in begun.strangers}, [])

    def _sizes(self, stages: Sequence[Stage]) -> tuple[list[float], list[str]]:
        """Tokens a conversation of each stage, and things to ask."""
        stock, sizes = self._stock(), []
        for stage in stages:
            report = self._dataset(stage, stock, SAMPLE).report()
            sizes.append((report.write_tokens + report.read_tokens) / SAMPLE)
        return sizes, [said for said, _ in stock.train.asked]

    def _dataset(self, stage: Stage, stock: Stock, count: int) -> EpisodeDataset:
        rows = stage_rows(stage, self.language, stock, count, seed=self.seed)
        return EpisodeDataset(
            rows, self.chat.tokenizer, stage.episodes, template_kwargs=self.chat.template_kwargs
        )

    def _pace(self, stage: Stage, asked: Sequence[str]) -> MachinePace:
        episodes = self._dataset(stage, self._stock(), 4 * stage.batch_size)
        return measured_pace(self.model, self.chat, episodes, stage.settings(8, 0), asked)


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
    (folder / COURSE).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
