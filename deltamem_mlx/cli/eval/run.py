"""Runs a benchmark for a command of `eval`, and shows its table."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.eval.models import Place, Result, measured, places
from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.parse import chosen_of
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.frame.session import template_kwargs
from deltamem_mlx.cli.options.eval import Choices

if TYPE_CHECKING:
    import mlx.nn as nn

    from deltamem_mlx.evals.benchmarks.task import Material, Task


@dataclass(frozen=True)
class Data:
    """What is asked.

    Args:
        name (str): As given.
        materials (Sequence[Material]): With the questions to ask.
        strangers (Mapping[str, Material]): Whose memory is put in the place of whose.
        options (Mapping[str, Any]): Of the task, for the settings of the run.
    """

    name: str
    materials: Sequence["Material"]
    strangers: Mapping[str, "Material"]
    options: Mapping[str, Any]


def run_benchmark(
    task: "Task",
    name: str,
    everything: Sequence["Material"],
    choices: Choices,
    *,
    among: Sequence["Material"] | None = None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Ask, keep, print.

    Args:
        task (Task): The benchmark.
        name (str): Its data, as given.
        everything (Sequence[Material]): All there is.
        choices (Choices): The options that every benchmark takes.
        among (Sequence[Material]): Of which to ask. Default: of all.
        options (Mapping[str, Any]): Of the task, for the settings of the run.
    """
    from deltamem_mlx.evals.benchmarks.asking import strangers_of
    from deltamem_mlx.evals.benchmarks.task import limited

    began = time.perf_counter()
    choices = replace(choices, out=launched.folder_here(choices.out))
    materials = limited(everything if among is None else among, choices.limit, choices.seed)
    data = Data(name, materials, strangers_of(materials, everything), options or {})
    chosen = places(choices.model, choices.adapter, choices.also_model, choices.out)
    conditions = _possible(_asked_for(choices), data)
    result = measured(
        chosen, choices.out, lambda place: _measure(task, data, choices, conditions, place)
    )
    if choices.json:
        output.result_json(result)
    else:
        from deltamem_mlx.evals.benchmarks.asking import NO_CONTEXT, ON_REQUEST, WITH_CONTEXT
        from deltamem_mlx.views.scores import groups_text

        says = (NO_CONTEXT if choices.no_context else WITH_CONTEXT) | ON_REQUEST
        shown = {name: says[name] for name in conditions}
        output.result(groups_text(result, conditions, shown, task.differences))
    questions = sum(len(m.questions) for m in data.materials)
    answers = questions * len(conditions) * len(chosen)
    seconds = time.perf_counter() - began
    output.note(f"{questions} questions, {answers} answers, {seconds:.0f} s.")
    if choices.out is not None:
        output.note(f"Every answer is in {choices.out}.")


def chosen_conditions(given: Sequence[str] | None) -> list[str]:
    """What `--condition` chose, in the order of what there is; all of that if it was not given.

    Raises:
        UsageError: If there is no such condition.
    """
    from deltamem_mlx.evals.benchmarks.asking import NO_CONTEXT

    return chosen_of("--condition", given, NO_CONTEXT)


def _asked_for(choices: Choices) -> list[str]:
    """The conditions that were chosen, or those that every benchmark has.

    Raises:
        UsageError: If there is no such condition, or not without a context or bm25s.
    """
    from deltamem_mlx.evals.benchmarks.asking import NO_CONTEXT, ON_REQUEST
    from deltamem_mlx.evals.retrieval import MISSING, can_retrieve

    if not choices.condition:
        return list(NO_CONTEXT)
    chosen = chosen_of("--condition", choices.condition, NO_CONTEXT | ON_REQUEST)
    if "retrieved" in chosen and choices.no_context:
        raise UsageError("--condition: 'retrieved' needs the context; leave --no-context out.")
    if "retrieved" in chosen and not can_retrieve():
        raise UsageError(f"--condition: {MISSING}")
    return chosen


def _possible(conditions: list[str], data: Data) -> list[str]:
    """The conditions without those of other memories, if there is nothing else to remember."""
    of_others = [name for name in conditions if name in ("shuffled", "mean")]
    if not of_others or data.strangers:
        return conditions
    if conditions == of_others:
        listed = " and ".join(map(repr, of_others))
        needs = "needs" if len(of_others) == 1 else "need"
        raise UsageError(
            f"--condition: {listed} {needs} data with two different materials or more."
        )
    listed = " or ".join(of_others)
    output.warn(f"No {listed} memory: the data has nothing else to remember.")
    return [name for name in conditions if name not in of_others]


def _measure(
    task: "Task", data: Data, choices: Choices, conditions: Sequence[str], place: Place
) -> Result:
    from deltamem_mlx.adapters.loading import fingerprint
    from deltamem_mlx.evals.aggregate import group_scores
    from deltamem_mlx.evals.benchmarks.asking import Examination, digest
    from deltamem_mlx.evals.benchmarks.reader import Reader
    from deltamem_mlx.evals.journal import Journal

    kwargs = template_kwargs(choices.chat_template_config)
    model, tokenizer = place.load(
        trust_remote_code=choices.trust_remote_code, pipeline=choices.pipeline
    )
    reader = Reader(model, tokenizer, batch_size=choices.batch_size, template_kwargs=kwargs)
    window = None if choices.no_context else _window(model, choices.max_context)
    settings = {
        "task": task.name,
        **place.names(model),
        "fingerprint": fingerprint(model),
        "data": data.name,
        "questions_digest": digest(data.materials),
        **data.options,
        "no_context": choices.no_context,
        "max_context": window,
        "conditions": list(conditions),
        "limit": choices.limit,
        "batch_size": choices.batch_size,
        "seed": choices.seed,
        "chat_template_config": reader.template_kwargs,
    }
    journal = Journal(place.out, settings)
    examination = Examination(
        reader,
        task,
        data.materials,
        strangers=data.strangers,
        window=window,
        folder=place.out,
    )
    questions = sum(len(m.questions) for m in data.materials)
    with answering(len(conditions) * questions) as tell:
        rows = examination.ask(conditions, journal, tell)
    groups = group_scores(rows, last=task.last_groups, seed=choices.seed)
    result = settings | {"questions": questions, "groups": groups}
    journal.finish(result)
    return result


def _window(model: "nn.Module", given: int | None) -> int:
    from deltamem_mlx.evals.benchmarks.window import context_window

    found = given or context_window(model)
    if found is None:
        raise UsageError("The model does not say how long its context is. Give --max-context.")
    return found
