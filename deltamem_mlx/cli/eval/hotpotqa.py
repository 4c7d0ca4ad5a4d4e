"""`deltamem-mlx eval hotpotqa`: questions over ten paragraphs."""

from typing import Annotated

import typer

from deltamem_mlx.cli.eval.run import run_benchmark
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options.eval import Choices

HUB = "hotpotqa/hotpot_qa"

Path = Annotated[
    str,
    typer.Argument(metavar="[PATH]", help="A .json, .jsonl or .parquet file, or a Hub dataset."),
]


@command(
    "deltamem-mlx eval hotpotqa --model MODEL --adapter ADAPTER --limit 500 --out results",
    "deltamem-mlx eval hotpotqa hotpot_dev_distractor_v1.json --adapter ADAPTER --no-context",
)
def hotpotqa(path: Path = HUB, *, choices: Choices) -> None:
    """HotpotQA (distractor): questions over ten paragraphs, with the adapter and without.

    The paragraphs are in the context, and the adapter's memory is written while they are read
    (memory). The same prompts are answered by the plain model (none) and with the memory of
    another question's paragraphs (shuffled). With --no-context the paragraphs go through the
    memory only, and the question is asked alone.
    """
    from deltamem_mlx.evals.benchmarks.hotpotqa import HotpotQA, load_hotpotqa

    run_benchmark(HotpotQA(), path, load_hotpotqa(path), choices)
