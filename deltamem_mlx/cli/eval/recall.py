"""`deltamem-mlx eval recall`: what a memory holds when the context is gone."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.eval.models import BUILTIN, Place, Result, measured, places
from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.parse import chosen_of
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.frame.session import ChatTemplateConfig, template_kwargs
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.cli.options.eval import AlsoModel, Out

if TYPE_CHECKING:
    from deltamem_mlx.evals.recall.episodes import RecallEpisode

FACTS = "facts"

Data = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="FILE|builtin|facts",
        help="Episodes as .jsonl or .jsonl.gz; builtin: those of the built-in pair, its default; "
        "facts: made up in natural language, the default of any other model.",
        show_default=False,
    ),
]
Holdout = Annotated[
    Path | None,
    typer.Option(
        "--holdout",
        metavar="FILE",
        help='Facts of your own: a JSON list of {"tell": text, "ask": text, "value": text}. Each '
        "is asked for when 1, 2 and 4 were told (or --facts), and when only others were.",
        show_default=False,
    ),
]
RetrievedTokens = Annotated[
    int,
    typer.Option(
        "--retrieved-tokens",
        min=1,
        help="Length of the turns that are retrieved, at most; the best one is there in any case.",
    ),
]
Limit = Annotated[
    int,
    typer.Option("--limit", min=1, help="Questions of each kind and number of facts, at most."),
]
Facts = Annotated[
    list[int] | None,
    typer.Option("--facts", min=1, help="Only episodes with so many facts. Repeatable."),
]
Kind = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="Only told, updated, never, heldout_word or heldout_wording. Repeatable.",
    ),
]
Condition = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="Only memory, none, foreign, mean, reloaded, retrieved or context. Repeatable.",
    ),
]
WriteQuestions = Annotated[
    bool,
    typer.Option(
        "--write-questions",
        help="Write questions and answers into the memory while answering, as chat does; "
        "otherwise they only read it, as in training.",
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Conversations at once.")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Seed of made-up episodes and of the bootstrap."
    ),
]


@command(
    "deltamem-mlx eval recall",
    "deltamem-mlx eval recall --model MODEL --adapter ADAPTER --limit 20 --facts 1 --facts 4",
    "deltamem-mlx eval recall --model MODEL --adapter ADAPTER --data my.jsonl --out results",
    "deltamem-mlx eval recall --model MODEL --adapter ADAPTER --holdout facts.json",
)
def recall(
    model: o.Model = None,
    adapter: o.Adapter = None,
    also_model: AlsoModel = None,
    data: Data = None,
    holdout: Holdout = None,
    kind: Kind = None,
    facts: Facts = None,
    limit: Limit = 64,
    condition: Condition = None,
    retrieved_tokens: RetrievedTokens = 32,
    write_questions: WriteQuestions = False,
    max_tokens: o.MaxTokens = 32,
    batch_size: BatchSize = 32,
    seed: Seed = 0,
    out: Out = None,
    chat_template_config: ChatTemplateConfig = None,
    pipeline: o.Pipeline = False,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """Ask for what was told when the context is gone.

    Facts are told and their context dropped. The same questions are answered with the memory, an
    empty one, those of others, and by the plain model with what was told in its context. Without
    --model and --adapter, the built-in pair is measured.

    The tables have the share of answers that contain the value, in per cent with 95 % intervals: of
    facts told, of facts changed later (the newest value counts, the old one spoils the answer) and
    of facts never told (saying so counts; as plain: the first 8 tokens are the plain model's, or
    both say so), and by how much the memory is above the others on the same questions.
    """
    began = time.perf_counter()
    from deltamem_mlx.evals.recall.episodes import KINDS
    from deltamem_mlx.evals.recall.recall import CONDITIONS

    if data is not None and holdout is not None:
        raise UsageError("--data and --holdout: give one of them.")
    conditions = _possible(chosen_of("--condition", condition, CONDITIONS), condition)
    choices = _RecallChoices(
        data=data,
        holdout=holdout,
        kinds=chosen_of("--kind", kind, KINDS),
        facts=facts or [],
        limit=limit,
        conditions=conditions,
        retrieved_tokens=retrieved_tokens,
        write_questions=write_questions,
        max_tokens=max_tokens,
        batch_size=batch_size,
        seed=seed,
        template_kwargs=template_kwargs(chat_template_config),
        pipeline=pipeline,
        trust_remote_code=trust_remote_code,
    )
    out = launched.folder_here(out)
    chosen = places(model, adapter, also_model, out)
    result = measured(chosen, out, lambda place: _measure(place, choices))
    _show(result, conditions, as_json=json)
    _note(result, chosen, conditions, out, time.perf_counter() - began)


@dataclass(frozen=True)
class _RecallChoices:
    """The options that decide the answers, the models apart."""

    data: str | None
    holdout: Path | None
    kinds: Sequence[str]
    facts: Sequence[int]
    limit: int
    conditions: Sequence[str]
    retrieved_tokens: int
    write_questions: bool
    max_tokens: int
    batch_size: int
    seed: int
    template_kwargs: Mapping[str, Any]
    pipeline: bool
    trust_remote_code: bool


def _possible(conditions: list[str], given: Sequence[str] | None) -> list[str]:
    """The conditions without retrieved, if its library is missing and it was not asked for."""
    from deltamem_mlx.evals.retrieval import MISSING, can_retrieve

    if "retrieved" not in conditions or can_retrieve():
        return conditions
    if given:
        raise UsageError(f"--condition: {MISSING}")
    output.warn(f"No retrieved text. {MISSING}")
    return [name for name in conditions if name != "retrieved"]


def _measure(place: Place, choices: _RecallChoices) -> Result:
    from deltamem_mlx.adapters.loading import base_model_of, fingerprint
    from deltamem_mlx.evals.journal import Journal
    from deltamem_mlx.evals.recall.episodes import digest, in_cells
    from deltamem_mlx.evals.recall.recall import recall as answer_all
    from deltamem_mlx.evals.recall.scores import scores
    from deltamem_mlx.evals.runner import Runner
    from deltamem_mlx.model import names

    loaded, tokenizer = place.load(
        trust_remote_code=choices.trust_remote_code, pipeline=choices.pipeline
    )
    builtin = base_model_of(loaded)["name"] == names.BUILTIN
    data = str(choices.holdout or choices.data or (BUILTIN if builtin else FACTS))
    cells = in_cells(_episodes(data, choices), choices.limit)
    runner = Runner(
        loaded,
        tokenizer,
        batch_size=choices.batch_size,
        max_tokens=choices.max_tokens,
        write_questions=choices.write_questions,
        template_kwargs=choices.template_kwargs,
    )
    template = {"chat_template_config": runner.template_kwargs} if runner.template_kwargs else {}
    settings = {
        "task": "recall",
        **place.names(loaded),
        "fingerprint": fingerprint(loaded),
        "data": data,
        "episodes": digest(episode for cell in cells.values() for episode in cell),
        "conditions": choices.conditions,
        **_retrieving(choices),
        "write_questions": choices.write_questions,
        "max_tokens": choices.max_tokens,
        "batch_size": choices.batch_size,
        "seed": choices.seed,
        **template,
    }
    journal = Journal(place.out, settings)
    total = len(choices.conditions) * sum(map(len, cells.values()))
    with answering(total) as tell:
        rows = answer_all(
            runner,
            cells,
            conditions=choices.conditions,
            retrieved_tokens=choices.retrieved_tokens,
            journal=journal,
            on_answers=tell,
        )
    result = settings | {"questions": len(rows), "cells": scores(rows, seed=choices.seed)}
    journal.finish(result)
    return result


def _retrieving(choices: _RecallChoices) -> dict[str, int]:
    """What decides the answers to retrieved text, if there are any."""
    shown = "retrieved" in choices.conditions
    return {"retrieved_tokens": choices.retrieved_tokens} if shown else {}


def _episodes(data: str, choices: _RecallChoices) -> list["RecallEpisode"]:
    from deltamem_mlx.evals.recall.builtin_data import builtin_episodes
    from deltamem_mlx.evals.recall.episodes import read_episodes
    from deltamem_mlx.evals.recall.facts import CELLS, fact_episodes
    from deltamem_mlx.evals.recall.holdout import FACTS as TOGETHER
    from deltamem_mlx.evals.recall.holdout import own_episodes, read_own_facts

    kinds, facts = choices.kinds, choices.facts
    if choices.holdout is not None:
        own = read_own_facts(choices.holdout)
        episodes = list(own_episodes(own, sizes=facts or TOGETHER, seed=choices.seed))
    elif data == FACTS:
        cells = [c for c in CELLS if c.kind in kinds and (not facts or c.facts in facts)]
        episodes = list(fact_episodes(choices.limit, seed=choices.seed, cells=cells))
    else:
        episodes = builtin_episodes() if data == BUILTIN else read_episodes(data)
    found = [e for e in episodes if e.kind in kinds and (not facts or e.facts in facts)]
    if not found:
        raise UsageError(f"--kind and --facts leave none of the episodes of {data!r}.")
    return found


def _show(result: dict[str, Any], conditions: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        output.result_json(result)
        return
    from deltamem_mlx.evals.recall.recall import CONDITIONS
    from deltamem_mlx.views.scores import as_text, score_tables

    for table in score_tables(result.get("models", [result]), conditions):
        output.result(as_text(table) + "\n")
    output.result("Correct answers in per cent, with 95 % intervals.")
    for name in conditions:
        output.result(f"  {name}: {CONDITIONS[name]}")


def _note(
    result: Result,
    chosen: Sequence[Place],
    conditions: Sequence[str],
    out: Path | None,
    seconds: float,
) -> None:
    """How much was asked, how long it took, and where it is kept."""
    from deltamem_mlx.evals.journal import QUESTIONS

    questions = sum(r["questions"] for r in result.get("models", [result]) if "questions" in r)
    questions = questions or result["questions"] * len(chosen)
    output.note(f"{questions} questions, {questions * len(conditions)} answers, {seconds:.0f} s.")
    if out is not None:
        where = out if len(chosen) > 1 else out / QUESTIONS
        output.note(f"Every answer is in {where}.")
