"""`deltamem-mlx eval memoryagentbench`: questions on texts that are told chunk by chunk."""

from typing import Annotated

import typer

from deltamem_mlx.cli.eval.run import run_benchmark
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options.eval import Choices

HUB = "ai-hyz/MemoryAgentBench"

Path = Annotated[
    str,
    typer.Argument(metavar="[PATH]", help="A .parquet, .json or .jsonl file, or a Hub dataset."),
]
Source = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        help="Only sources that begin so, such as factconsolidation or ruler_qa. Repeatable.",
    ),
]


@command(
    "deltamem-mlx eval memoryagentbench --model MODEL --adapter ADAPTER --source factconsolidation",
    "deltamem-mlx eval memoryagentbench --adapter ADAPTER --limit 200 --no-context --out results",
)
def memoryagentbench(path: Path = HUB, *, source: Source = None, choices: Choices) -> None:
    """MemoryAgentBench: long texts told in chunks, with the adapter and without.

    The newest part of a text that fits is in the context, and the adapter's memory is written
    while it is read (memory). The same prompts are answered by the plain model (none) and with
    the memory of another text (shuffled). With --no-context the whole text goes through the
    memory only, chunk by chunk, and the question is asked alone.

    The table has a line for each kind of source and each competence: accurate retrieval (AR),
    test-time learning (TTL), long-range understanding (LRU), selective forgetting (SF). Movie
    recommendations count where their entity2id.json is beside the data.
    """
    from deltamem_mlx.evals.benchmarks.memoryagentbench import (
        MemoryAgentBench,
        load_memoryagentbench,
    )

    sources = sorted(source or [])
    everything = load_memoryagentbench(path, sources)
    run_benchmark(MemoryAgentBench(), path, everything, choices, options={"sources": sources})
