"""`deltamem-mlx eval locomo`: questions about conversations that run over months."""

from typing import Annotated

import typer

from deltamem_mlx.cli.eval.run import run_benchmark
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.options.eval import Choices

Path = Annotated[
    str,
    typer.Argument(
        metavar="PATH",
        help="locomo10.json (github.com/snap-research/locomo), or a Hub dataset that holds it.",
    ),
]
Conversations = Annotated[
    int | None,
    typer.Option("--conversations", min=1, help="Only the first so many.", show_default="all"),
]


@command(
    "deltamem-mlx eval locomo locomo10.json --model MODEL --adapter ADAPTER --out results",
    "deltamem-mlx eval locomo locomo10.json --adapter ADAPTER --conversations 2 --limit 100",
    "deltamem-mlx eval locomo locomo10.json --adapter ADAPTER --no-context",
    "deltamem-mlx eval locomo locomo10.json --model 8BIT --also-model 4BIT --adapter ADAPTER",
)
def locomo(path: Path, *, conversations: Conversations = None, choices: Choices) -> None:
    """LoCoMo: long conversations and questions about them, with the adapter and without.

    The newest part of a conversation that fits is in the context, and the adapter's memory is
    written while it is read (memory). The same prompts are answered by the plain model (none) and
    with the memory of another conversation (shuffled). With --no-context the whole conversation
    goes through the memory only, session by session, and the question is asked alone.

    The data is CC BY-NC 4.0 and not part of this package. The table has the token F1 of Porter
    stems, in category 5 (no true answer) the share that says so.
    """
    from deltamem_mlx.evals.benchmarks.locomo import LoCoMo, load_locomo
    from deltamem_mlx.evals.benchmarks.text_scores import stems

    stems("")  # raises now, not after the first answers, if its library is missing
    everything = load_locomo(path)
    run_benchmark(LoCoMo(), path, everything, choices, among=everything[:conversations])
