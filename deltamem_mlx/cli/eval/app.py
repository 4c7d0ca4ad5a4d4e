"""`deltamem-mlx eval`: one command a task."""

import typer

from deltamem_mlx.cli.eval.hotpotqa import hotpotqa
from deltamem_mlx.cli.eval.lm import lm
from deltamem_mlx.cli.eval.locomo import locomo
from deltamem_mlx.cli.eval.longmemeval import longmemeval
from deltamem_mlx.cli.eval.memoryagentbench import memoryagentbench
from deltamem_mlx.cli.eval.perplexity import perplexity
from deltamem_mlx.cli.eval.recall import recall
from deltamem_mlx.cli.eval.silence import silence
from deltamem_mlx.cli.frame import output

app = typer.Typer()


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context) -> None:
    """Measure an adapter: each task with the memory and without, on the same questions."""
    if ctx.invoked_subcommand is None:
        output.result(ctx.get_help(), end="")


app.command("recall")(recall)
app.command("silence")(silence)
app.command("locomo")(locomo)
app.command("longmemeval")(longmemeval)
app.command("hotpotqa")(hotpotqa)
app.command("memoryagentbench")(memoryagentbench)
app.command("lm")(lm)
app.command("perplexity")(perplexity)
