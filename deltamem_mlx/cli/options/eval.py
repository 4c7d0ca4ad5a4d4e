"""The options that the tasks of `eval` share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from deltamem_mlx.cli.frame.session import ChatTemplateConfig, template_kwargs
from deltamem_mlx.cli.options import shared as o

AlsoModel = Annotated[
    list[str] | None,
    typer.Option(
        "--also-model",
        metavar="FOLDER|REPO",
        help="Measure the same adapter on this model, too: another quantization of --model. "
        "Repeatable.",
        rich_help_panel=o.MODEL,
    ),
]
NoContext = Annotated[
    bool,
    typer.Option(
        "--no-context",
        help="What is asked about goes through the memory only, then the question alone.",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="So many questions, drawn by --seed. A larger limit keeps those of a smaller one.",
        show_default="all",
    ),
]
Condition = Annotated[
    list[str] | None,
    typer.Option("--condition", help="Only memory, none or shuffled. Repeatable."),
]
BenchmarkCondition = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        help="Only memory, none or shuffled, or one that is answered on request: mean (of all "
        "others' memories) or retrieved (as much text, found by BM25). Repeatable.",
    ),
]
MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        min=64,
        metavar="TOKENS",
        help="The context window: what is asked about, the question and the answer.",
        show_default="the model's",
        rich_help_panel=o.CONTEXT,
    ),
]
BatchSize = Annotated[
    int,
    typer.Option(
        "--batch-size",
        min=1,
        help="Questions at once. Each needs room for a context of its own.",
    ),
]
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of --limit and of the bootstrap.")
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help="Keep every answer, or figure, in questions.jsonl there, and the table in "
        "result.json. What is there already is not computed again.",
        show_default=False,
    ),
]


@dataclass(frozen=True)
class Measured:
    """What is measured, and where that is kept: the options of tasks that ask nothing."""

    model: o.Model = None
    adapter: o.Adapter = None
    also_model: AlsoModel = None
    out: Out = None
    chat_template_config: ChatTemplateConfig = None
    pipeline: o.Pipeline = False
    trust_remote_code: o.TrustRemoteCode = False
    json: o.Json = False

    @property
    def template_kwargs(self) -> dict[str, Any]:
        """Settings of the chat template; raises UsageError for anything else."""
        return template_kwargs(self.chat_template_config)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The options that every benchmark takes."""

    model: o.Model = None
    adapter: o.Adapter = None
    also_model: AlsoModel = None
    no_context: NoContext = False
    limit: Limit = None
    condition: BenchmarkCondition = None
    max_context: MaxContext = None
    batch_size: BatchSize = 8
    seed: Seed = 0
    out: Out = None
    chat_template_config: ChatTemplateConfig = None
    pipeline: o.Pipeline = False
    trust_remote_code: o.TrustRemoteCode = False
    json: o.Json = False
