"""`deltamem-mlx eval longmemeval`: questions about months of chats with an assistant."""

from typing import Annotated

import typer

from deltamem_mlx.cli.eval.run import run_benchmark
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options.eval import Choices

Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="longmemeval_oracle.json, longmemeval_s_cleaned.json or longmemeval_m_cleaned.json; "
        "of xiaowu0162/longmemeval-cleaned or another Hub dataset the s file is read.",
    ),
]


@command(
    "deltamem-mlx eval longmemeval longmemeval_oracle.json --model MODEL --adapter ADAPTER",
    "deltamem-mlx eval longmemeval longmemeval_s_cleaned.json --adapter ADAPTER --no-context "
    "--limit 100 --out results",
)
def longmemeval(path: Path, *, choices: Choices) -> None:
    """LongMemEval: what was said in chats over months, with the adapter and without.

    The newest part of the chats that fits is in the context, and the adapter's memory is written
    while it is read (memory). The same prompts are answered by the plain model (none) and with
    the memory of another question's chats (shuffled). With --no-context the chats go through the
    memory only, one by one, and the question is asked alone.

    The table has a line for each type of question, among them facts that were changed later
    (knowledge-update), and one for questions that have no answer (abstention), where saying so is
    right. The data (MIT) is not part of this package.
    """
    from deltamem_mlx.evals.benchmarks.longmemeval import LongMemEval, load_longmemeval

    run_benchmark(LongMemEval(), path, load_longmemeval(path), choices)
