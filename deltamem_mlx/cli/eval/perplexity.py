"""`deltamem-mlx eval perplexity`: what the adapter does to the base model's predictions."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.eval.models import Place, Result, measured, places
from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.options import eval as e

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.evals.passages import Source

Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="A .txt or .md file, a folder of them, or a .jsonl file of conversations "
        '({"messages": [...]} on each line).',
    ),
]
MaxLength = Annotated[
    int | None,
    typer.Option(
        "--max-length",
        min=2,
        metavar="TOKENS",
        help="Length of a window of text; of a conversation, read only so many tokens from its "
        "start.",
        show_default="512; conversations whole",
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit",
        min=1,
        help="So many windows or conversations, drawn by --seed. A larger limit keeps those of a "
        "smaller one.",
        show_default="all",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Windows or conversations at once.")
]


@dataclass(frozen=True)
class PerplexityOptions:
    """What `eval perplexity` was asked for, the models apart."""

    data: Data
    max_length: MaxLength = None
    limit: Limit = None
    batch_size: BatchSize = 8
    seed: e.Seed = 0


@command(
    "deltamem-mlx eval perplexity book.txt --model MODEL --adapter ADAPTER --limit 100",
    "deltamem-mlx eval perplexity conversations.jsonl --adapter ADAPTER --out results",
)
def perplexity(options: PerplexityOptions, of: e.Measured) -> None:
    """Whether the base model stays as good as it was: perplexity with the adapter and without.

    Text is cut into windows. Each, or each conversation as the chat template renders it, is read
    from an empty memory that is written while it is read (memory), and by the plain model (none).
    Every token but the first counts. 100 % means that the adapter changes nothing; less is better.
    Without --model and --adapter, the built-in pair is measured.
    """
    began = time.perf_counter()
    from deltamem_mlx.evals.passages import read_source

    settings = of.template_kwargs  # raises before anything is read
    out = launched.folder_here(of.out)
    chosen = places(of.model, of.adapter, of.also_model, out)
    source = read_source(options.data)  # raises before a model is loaded

    def measure(place: Place) -> Result:
        loaded = place.load(trust_remote_code=of.trust_remote_code, pipeline=of.pipeline)
        return _measure(place, loaded, source, options, settings)

    result = measured(chosen, out, measure)
    if of.json:
        output.result_json(result)
    else:
        _show(result)
    tables = result.get("models", [result])
    if any((result | own)["passages"] == 1 for own in tables):
        output.warn("One window or conversation only: its interval says nothing.")
    output.note(f"{time.perf_counter() - began:.0f} s.")
    if out is not None:
        output.note(f"Every loss is in {out}.")


def _measure(
    place: Place,
    loaded: tuple["nn.Module", "TokenizerWrapper"],
    source: "Source",
    options: PerplexityOptions,
    template: Mapping[str, Any],
) -> Result:
    from deltamem_mlx.adapters.loading import fingerprint
    from deltamem_mlx.evals.journal import Journal
    from deltamem_mlx.evals.passages import passages
    from deltamem_mlx.evals.perplexity import CONDITIONS, digest, losses, summary
    from deltamem_mlx.model.patch import config_of

    model, tokenizer = loaded
    found = passages(
        source,
        tokenizer,
        max_length=options.max_length,
        limit=options.limit,
        seed=options.seed,
        sentences=config_of(model).memory_write_granularity == "sentence_mean",
        template_kwargs=template,
    )
    settings = {
        "task": "perplexity",
        **place.names(model),
        "fingerprint": fingerprint(model),
        "data": options.data,
        "passages_digest": digest(found),
        "max_length": options.max_length,
        "limit": options.limit,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "chat_template_config": template,
    }
    journal = Journal(place.out, settings)
    with answering(len(CONDITIONS) * len(found)) as tell:
        rows = losses(model, found, batch_size=options.batch_size, journal=journal, tell=tell)
    tokens = sum(len(passage.spans.token_ids) - 1 for passage in found)
    result = settings | {"passages": len(found), "tokens": tokens}
    result |= summary(rows, seed=options.seed)
    journal.finish(result)
    return result


def _show(result: Result) -> None:
    from rich.markup import escape

    from deltamem_mlx.evals.perplexity import ADAPTED, BASE, CONDITIONS
    from deltamem_mlx.views.scores import as_text, table

    models = [result | own for own in result.get("models", [result])]
    named = ["model"] if len(models) > 1 else []
    made = table(
        *(*named, "condition", "perplexity", "nats/token", f"{ADAPTED} / {BASE}"),
        left=1 + len(named),
    )
    for own in models:
        for name, score in own["scores"].items():
            made.add_row(
                *([escape(Path(own["model"]).name)] if named else []),
                name,
                f"[bold]{score['perplexity']:.3f}[/]",
                f"{score['nats_per_token']:.4f}",
                _ratio(own["ratio"]) if name == ADAPTED else "",
            )
    output.result(as_text(made) + "\n")
    for own in models:
        of = f"{Path(own['model']).name}: " if named else ""
        output.result(f"{of}{own['tokens']} tokens; windows or conversations: {own['passages']}.")
    output.result(
        "The ratio is that of the perplexities, with a paired bootstrap interval of 95 %."
    )
    for name, meaning in CONDITIONS.items():
        output.result(f"  {name}: {meaning}")


def _ratio(found: Mapping[str, float]) -> str:
    value, low, high = (f"{100 * found[key]:.2f}" for key in ("value", "low", "high"))
    return f"[bold]{value} %[/] [dim]{low} to {high}[/]"
