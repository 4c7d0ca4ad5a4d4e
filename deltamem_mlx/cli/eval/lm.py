"""`deltamem-mlx eval lm`: general abilities, through lm-eval."""

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.eval.models import Place, Result, measured, places
from deltamem_mlx.cli.eval.run import chosen_conditions
from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.frame.session import ChatTemplateConfig, template_kwargs
from deltamem_mlx.cli.options import eval as e
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

    from deltamem_mlx.evals.lm import LmSettings
    from deltamem_mlx.evals.runner import Runner, State

Tasks = Annotated[
    str,
    typer.Option("--tasks", metavar="NAME,NAME", help="Tasks of lm-eval, between commas."),
]
IncludePath = Annotated[
    Path | None,
    typer.Option(
        "--include-path",
        metavar="FOLDER",
        exists=True,
        file_okay=False,
        help="A folder with tasks of your own, as lm-eval describes them.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option("--limit", min=1, help="The first examples of each task.", show_default="all"),
]
NumFewshot = Annotated[
    int | None,
    typer.Option("--num-fewshot", min=0, help="Examples in the prompt.", show_default="task's"),
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", "-m", min=1, help="Length of an answer.", show_default="task's"),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of lm-eval and of the bootstrap.")
]


@command(
    "deltamem-mlx eval lm --tasks ifeval,gpqa_diamond_zeroshot --model MODEL --adapter ADAPTER",
    "deltamem-mlx eval lm --tasks ifeval --limit 100 --adapter ADAPTER --out results",
)
def lm(
    tasks: Tasks,
    model: o.Model = None,
    adapter: o.Adapter = None,
    also_model: e.AlsoModel = None,
    include_path: IncludePath = None,
    limit: Limit = None,
    num_fewshot: NumFewshot = None,
    condition: e.Condition = None,
    max_tokens: MaxTokens = None,
    batch_size: e.BatchSize = 8,
    seed: Seed = 0,
    out: e.Out = None,
    chat_template_config: ChatTemplateConfig = None,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """General abilities: any tasks of EleutherAI's lm-eval, with the adapter and without.

    Every prompt is answered with a memory that is empty at its start and written while it is read
    (memory), by the plain model (none), and with the memory of a conversation that has nothing to
    do with it (shuffled). mlx-lm does the scoring. Needs: pip install 'deltamem-mlx[eval]'
    """
    began = time.perf_counter()
    from deltamem_mlx.evals.lm import CONDITIONS, LmSettings, task_manager

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise UsageError("--tasks: expected names between commas, such as ifeval.")
    conditions = chosen_conditions(condition)
    settings = LmSettings(
        tasks=names,
        include_path=include_path,
        limit=limit,
        num_fewshot=num_fewshot,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        template_kwargs=template_kwargs(chat_template_config),
    )
    chosen = places(model, adapter, also_model, out)
    manager = task_manager(settings)  # raises for unknown tasks before a model is loaded
    result = measured(
        chosen,
        out,
        lambda place: _measure(place, settings, manager, conditions, trust_remote_code),
    )
    if json:
        output.result_json(result)
    else:
        from deltamem_mlx.views.scores import groups_text

        output.result(
            groups_text(result, conditions, {name: CONDITIONS[name] for name in conditions})
        )
    output.note(f"{time.perf_counter() - began:.0f} s.")
    if out is not None:
        output.note(f"Every answer is in {out}.")


def _measure(
    place: Place,
    settings: "LmSettings",
    manager: "TaskManager",
    conditions: list[str],
    trust_remote_code: bool,
) -> Result:
    from importlib.metadata import version

    from deltamem_mlx.adapters.loading import fingerprint
    from deltamem_mlx.evals.aggregate import group_scores
    from deltamem_mlx.evals.journal import Journal
    from deltamem_mlx.evals.lm import evaluate
    from deltamem_mlx.evals.runner import Runner

    model, tokenizer = place.load(trust_remote_code=trust_remote_code)
    values = asdict(settings)
    shown = values | {"include_path": settings.include_path and str(settings.include_path)}
    run = {
        "task": "lm",
        **place.names(model),
        "fingerprint": fingerprint(model),
        "lm_eval": version("lm_eval"),
        "conditions": conditions,
        **shown,
    }
    journal = Journal(place.out, run)
    runner = Runner(model, tokenizer, template_kwargs=settings.template_kwargs)
    with answering(None) as tell:
        rows = evaluate(
            model,
            runner.tokenizer,
            settings,
            manager,
            conditions=conditions,
            stranger=_stranger(runner, settings.seed) if "shuffled" in conditions else None,
            journal=journal,
            tell=tell,
        )
    groups = group_scores(rows, seed=settings.seed)
    result = run | {"answers": len(journal.rows), "groups": groups}
    journal.finish(result)
    return result


def _stranger(runner: "Runner", seed: int) -> "State":
    """The memory of made-up facts."""
    from deltamem_mlx.evals.recall.facts import fact_episodes

    return runner.remember([next(iter(fact_episodes(1, seed=seed))).tell])[0]
