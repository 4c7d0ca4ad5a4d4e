"""`deltamem-mlx eval hotpotqa`: questions over ten paragraphs."""

from typing import Annotated

import typer

from deltamem_mlx.cli.eval.run import Choices, run_benchmark
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.session import ChatTemplateConfig
from deltamem_mlx.cli.options import eval as e
from deltamem_mlx.cli.options import shared as o

HUB = "hotpotqa/hotpot_qa"

Path = Annotated[
    str,
    typer.Argument(metavar="[PATH]", help="A .json, .jsonl or .parquet file, or a Hub dataset."),
]


@command(
    "deltamem-mlx eval hotpotqa --model MODEL --adapter ADAPTER --limit 500 --out results",
    "deltamem-mlx eval hotpotqa hotpot_dev_distractor_v1.json --adapter ADAPTER --no-context",
)
def hotpotqa(
    path: Path = HUB,
    model: o.Model = None,
    adapter: o.Adapter = None,
    also_model: e.AlsoModel = None,
    no_context: e.NoContext = False,
    limit: e.Limit = None,
    condition: e.Condition = None,
    max_context: e.MaxContext = None,
    batch_size: e.BatchSize = 8,
    seed: e.Seed = 0,
    out: e.Out = None,
    chat_template_config: ChatTemplateConfig = None,
    trust_remote_code: o.TrustRemoteCode = False,
    json: o.Json = False,
) -> None:
    """HotpotQA (distractor): questions over ten paragraphs, with the adapter and without.

    The paragraphs are in the context, and the adapter's memory is written while they are read
    (memory). The same prompts are answered by the plain model (none) and with the memory of
    another question's paragraphs (shuffled). With --no-context the paragraphs go through the
    memory only, and the question is asked alone.
    """
    choices = Choices.of(locals())
    from deltamem_mlx.evals.benchmarks.hotpotqa import HotpotQA, load_hotpotqa

    run_benchmark(HotpotQA(), path, load_hotpotqa(path), choices)
