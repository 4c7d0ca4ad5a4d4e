"""`deltamem-mlx eval`: one command a task."""

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.lazy import Listed, register

_EVAL = "deltamem_mlx.cli.eval"

COMMANDS = {
    "recall": Listed(f"{_EVAL}.recall:recall", "Ask for what was told when the context is gone."),
    "silence": Listed(
        f"{_EVAL}.silence:silence", "Whether the memory keeps quiet where it has nothing to say."
    ),
    "locomo": Listed(
        f"{_EVAL}.locomo:locomo",
        "LoCoMo: long conversations and questions about them, with the adapter and without.",
    ),
    "longmemeval": Listed(
        f"{_EVAL}.longmemeval:longmemeval",
        "LongMemEval: what was said in chats over months, with the adapter and without.",
    ),
    "hotpotqa": Listed(
        f"{_EVAL}.hotpotqa:hotpotqa",
        "HotpotQA (distractor): questions over ten paragraphs, with the adapter and without.",
    ),
    "memoryagentbench": Listed(
        f"{_EVAL}.memoryagentbench:memoryagentbench",
        "MemoryAgentBench: long texts told in chunks, with the adapter and without.",
    ),
    "lm": Listed(
        f"{_EVAL}.lm:lm",
        "General abilities: any tasks of EleutherAI's lm-eval, with the adapter and without.",
    ),
    "perplexity": Listed(
        f"{_EVAL}.perplexity:perplexity",
        "Whether the base model stays as good as it was: perplexity with the adapter and without.",
    ),
}

app = typer.Typer(add_completion=False)


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context) -> None:
    """Measure an adapter: each task with the memory and without, on the same questions."""
    if ctx.invoked_subcommand is None:
        output.result(ctx.get_help(), end="")


register(app, COMMANDS)
