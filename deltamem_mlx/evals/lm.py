"""General abilities through EleutherAI's lm-eval, with the memory and without.

mlx-lm's own ``MLXLM`` does the work, around a model whose prompt caches begin with a memory.
Needs the ``eval`` extra.
"""

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import groupby
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from mlx_lm.evaluate import MLXLM, chat_template_fn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import memories, set_memory_state
from .journal import Journal, Row
from .runner import State

CONDITIONS = {
    "memory": "an empty memory at the start of every prompt, written while it is read",
    "none": "an empty memory that is not written: the plain model",
    "shuffled": "the memory of a conversation about something else, not written",
}

Tell = Callable[[int], None]
Method = Callable[[list[Instance]], list]


class Remembering:
    """A patched model whose new prompt caches begin with a memory.

    Args:
        model (nn.Module): A model with an adapter.
        state (State): The memory to begin with. None: an empty one.
        write (bool): Whether the memory is written.
    """

    def __init__(self, model: nn.Module, state: State | None, *, write: bool):
        self.model, self.state, self.write = model, state, write

    def make_cache(self) -> list:
        """What mlx-lm's ``make_prompt_cache`` gives."""
        cache = make_prompt_cache(self.model)
        if self.state is not None:
            set_memory_state(cache, self.state)
        if not self.write:
            for memory in memories(cache).values():
                memory.read_only = [True]
        return cache

    def __call__(self, *args: object, **kwargs: object) -> mx.array:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> object:
        return getattr(self.model, name)


class MemoryLM(MLXLM):
    """mlx-lm's model for lm-eval, on a model that is loaded, keeping what it answers.

    Args:
        model (Remembering): The model.
        tokenizer (TokenizerWrapper): Its tokenizer.
        condition (str): Under which answers are kept.
        journal (Journal): Where; those it holds are not computed again.
        tell (Callable[[int], None]): Told how many more answers there are.
        settings (LmSettings): How it is asked.
    """

    def __init__(
        self,
        model: Remembering,
        tokenizer: TokenizerWrapper,
        *,
        condition: str,
        journal: Journal,
        tell: Tell,
        settings: "LmSettings",
    ):
        LM.__init__(self)  # MLXLM's own would load a model
        self._model, self.tokenizer = model, tokenizer
        self._max_tokens, self._batch_size = settings.max_tokens, settings.batch_size
        self.use_chat_template = tokenizer.chat_template is not None
        self._sampler = None
        self._condition, self._journal, self._tell = condition, journal, tell
        self._template = chat_template_fn(**settings.template_kwargs)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self._template(self, chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        # Continuations of one context are scored on one prefilled cache.
        runs = [list(own) for _, own in groupby(requests, key=lambda request: request.args[0])]
        return [tuple(found) for found in self._kept(runs, self._likelihoods)]

    def _likelihoods(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        # mlx-lm cuts contexts to the length that answers may have, and here is none to be made.
        longest, self._max_tokens = self._max_tokens, None
        try:
            return super().loglikelihood(requests)
        finally:
            self._max_tokens = longest

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        # One at a time: a memory to begin with is that of one conversation.
        return self._kept([[request] for request in requests], super().loglikelihood_rolling)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        size = self._batch_size
        runs = [requests[i : i + size] for i in range(0, len(requests), size)]
        return self._kept(runs, super().generate_until)

    def _kept(self, runs: list[list[Instance]], answer: Method) -> list:
        ids = []
        for run in runs:
            own = [f"{self._condition}/{_id(request)}" for request in run]
            if any(i not in self._journal.rows for i in own):
                pairs = zip(run, own, answer(run), strict=True)
                self._journal.add([_row(request, i, said) for request, i, said in pairs])
            self._tell(len(run))
            ids += own
        return [self._journal.rows[i]["said"] for i in ids]


@dataclass(frozen=True)
class LmSettings:
    """How a model is asked.

    Args:
        tasks (Sequence[str]): Names in lm-eval.
        include_path (Path): A folder with more tasks.
        limit (int): Examples of each task at most.
        num_fewshot (int): Examples in the prompt. None: the task's own number.
        max_tokens (int): Length of an answer at most. None: the task's own.
        batch_size (int): Prompts at once.
        seed (int): Of lm-eval's random choices.
        template_kwargs (Mapping): For the chat template.
    """

    tasks: Sequence[str]
    include_path: Path | None
    limit: int | None
    num_fewshot: int | None
    max_tokens: int | None
    batch_size: int
    seed: int
    template_kwargs: Mapping[str, Any]


def task_manager(settings: LmSettings) -> TaskManager:
    """lm-eval's tasks and those of ``include_path``.

    Raises:
        ValueError: If a task is not among them; names that are close are given.
    """
    own = settings.include_path and str(settings.include_path)
    if own:
        # Without lm-eval's own, of which there are so many that reading them takes a while.
        manager = TaskManager(include_path=own, include_defaults=False)
        if set(settings.tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=own)
    known = manager.all_tasks
    problems = []
    for name in settings.tasks:
        if name not in known:
            close = get_close_matches(name, known, 3)
            problems.append(f"{name!r}" + (f" (close: {', '.join(close)})" if close else ""))
    if problems:
        raise ValueError(
            f"lm-eval has no task {', '.join(problems)}. Its tasks: lm-eval ls tasks; tasks of "
            "your own: --include-path."
        )
    return manager


def evaluate(
    model: nn.Module,
    tokenizer: TokenizerWrapper,
    settings: LmSettings,
    manager: TaskManager,
    *,
    conditions: Sequence[str],
    stranger: State | None,
    journal: Journal,
    tell: Tell,
) -> list[Row]:
    """Run lm-eval's tasks under every condition.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer.
        settings (LmSettings): Tasks, and how they are asked.
        manager (TaskManager): From ``task_manager``.
        conditions (Sequence[str]): Names in ``CONDITIONS``.
        stranger (State): The memory for ``shuffled``.
        journal (Journal): Where answers are kept; those it holds are not computed again.
        tell (Callable[[int], None]): Told how many more answers there are.

    Returns:
        list[Row]: A row per example, filter and condition, as ``group_scores`` takes them.
    """
    rows: list[Row] = []
    for condition in conditions:
        state = stranger if condition == "shuffled" else None
        lm = MemoryLM(
            Remembering(model, state, write=condition == "memory"),
            tokenizer,
            condition=condition,
            journal=journal,
            tell=tell,
            settings=settings,
        )
        rows += _rows(_run(lm, manager, settings), condition)
    return rows


def _run(lm: MemoryLM, manager: TaskManager, settings: LmSettings) -> Mapping:
    seed = settings.seed
    # Its own progress bars start anew with every batch, and some of it goes to stdout.
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        return simple_evaluate(
            model=lm,
            tasks=list(settings.tasks),
            task_manager=manager,
            num_fewshot=settings.num_fewshot,
            limit=settings.limit,
            apply_chat_template=lm.use_chat_template,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=None,
            fewshot_random_seed=seed,
        )


def _rows(results: Mapping, condition: str) -> list[Row]:
    rows = []
    for task, samples in sorted(results["samples"].items()):
        for sample in samples:
            chosen = sample.get("filter", "none")
            suffix = "" if chosen == "none" else f", {chosen}"
            values = {name: _number(sample[name]) for name in sample["metrics"]}
            rows.append(
                {
                    "question_id": f"{task}/{chosen}/{sample['doc_id']}",
                    "condition": condition,
                    "groups": [task],
                    "scores": {f"{n}{suffix}": x for n, x in values.items() if x is not None},
                }
            )
    return rows


def _number(value: object) -> float | None:
    """A metric of one example as a number; None where it has meaning only over all of them."""
    if isinstance(value, list) and value and all(isinstance(x, bool) for x in value):
        return sum(value) / len(value)
    return float(value) if isinstance(value, int | float) else None


def _id(request: Instance) -> str:
    return f"{request.task_name}/{request.request_type}/{request.doc_id}/{request.idx}"


def _row(request: Instance, name: str, said: object) -> Row:
    return {"id": name, "task": request.task_name, "doc": request.doc_id, "said": said}
