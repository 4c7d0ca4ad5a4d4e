"""`deltamem-mlx eval silence`: whether the memory keeps quiet where it has nothing to say."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.eval.models import Place, Result, measured, places
from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.progress import answering
from deltamem_mlx.cli.options import eval as e

if TYPE_CHECKING:
    from deltamem_mlx.evals.benchmarks.reader import Reader
    from deltamem_mlx.evals.silence.silence import Histories

Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        metavar="FILE",
        help="Questions of your own, one a line, that have nothing to do with facts about people.",
        show_default=False,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", min=1, help="The first questions of each kind.", show_default="all, 8 of each"
    ),
]
Histories_ = Annotated[
    int,
    typer.Option("--histories", min=1, help="So many conversations of facts, and so many chats."),
]
ChatTokens = Annotated[
    int, typer.Option("--chat-tokens", min=1, metavar="TOKENS", help="Length of a chat.")
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Seed of what is told, and of the bootstrap."
    ),
]


@dataclass(frozen=True)
class SilenceOptions:
    """What `eval silence` was asked for, the models apart."""

    data: Data = None
    limit: Limit = None
    histories: Histories_ = 8
    chat_tokens: ChatTokens = 2000
    seed: Seed = 0


@command(
    "deltamem-mlx eval silence --model MODEL --adapter ADAPTER",
    "deltamem-mlx eval silence --model MODEL --adapter ADAPTER --data questions.txt --out results",
)
def silence(options: SilenceOptions, of: e.Measured) -> None:
    """Whether the memory keeps quiet where it has nothing to say.

    Four facts (facts), or a long chat of two people (chat), go through the memory and their context
    is dropped. Then questions are asked that have nothing to do with them. How far the first token
    of the answer is from the plain model's is a divergence, KL(plain ‖ with memory), in nats: 0 is
    a memory that changes nothing. Without --model and --adapter, the built-in pair is measured, on
    the small talk of its little language.
    """
    began = time.perf_counter()
    settings = of.template_kwargs  # raises before a model is loaded
    own = None if options.data is None else _own_questions(options.data)
    out = launched.folder_here(of.out)
    chosen = places(of.model, of.adapter, of.also_model, out)

    def measure(place: Place) -> Result:
        from deltamem_mlx.evals.benchmarks.reader import Reader

        loaded = place.load(trust_remote_code=of.trust_remote_code, pipeline=of.pipeline)
        return _measure(place, Reader(*loaded, template_kwargs=settings), own, options)

    result = measured(chosen, out, measure)
    if of.json:
        output.result_json(result)
    else:
        _show(result)
    output.note(f"{time.perf_counter() - began:.0f} s.")
    if out is not None:
        output.note(f"Every figure is in {out}.")


def _own_questions(path: Path) -> list[str]:
    from deltamem_mlx.files import read_text

    lines = (line.strip() for line in read_text(path).splitlines())
    found = list(dict.fromkeys(line for line in lines if line))
    if not found:
        raise UsageError(f"--data: {path} has no questions; expected one a line.")
    return found


def _measure(
    place: Place, reader: "Reader", own: Sequence[str] | None, options: SilenceOptions
) -> Result:
    from deltamem_mlx.adapters.loading import fingerprint
    from deltamem_mlx.evals.journal import Journal
    from deltamem_mlx.evals.silence.silence import HISTORIES, silence, summary

    questions, told = _asked(reader, own, options)
    settings = {
        "task": "silence",
        **place.names(reader.model),
        "fingerprint": fingerprint(reader.model),
        "data": None if options.data is None else str(options.data),
        "asked": {kind: list(texts) for kind, texts in questions.items()},
        "histories": options.histories,
        "chat_tokens": options.chat_tokens,
        "seed": options.seed,
        "chat_template_config": reader.template_kwargs,
    }
    journal = Journal(place.out, settings)
    count = sum(map(len, questions.values()))
    with answering(count * len(HISTORIES)) as tell:
        rows = silence(reader, questions, told, journal=journal, tell=tell)
    result = settings | {"questions": count, "scores": summary(rows, seed=options.seed)}
    journal.finish(result)
    return result


def _asked(
    reader: "Reader", own_questions: Sequence[str] | None, options: SilenceOptions
) -> tuple[Mapping[str, Sequence[str]], "Histories"]:
    """The questions by kind, and what is told before them."""
    from deltamem_mlx.adapters.loading import base_model_of
    from deltamem_mlx.evals.recall.builtin_data import builtin_episodes
    from deltamem_mlx.evals.silence import silence as s
    from deltamem_mlx.evals.silence.questions import QUESTIONS
    from deltamem_mlx.model import names

    own = None if own_questions is None else {"own": own_questions}
    questions: Mapping[str, Sequence[str]]
    if base_model_of(reader.model)["name"] == names.BUILTIN:
        episodes = builtin_episodes()
        questions = own or {"talk": s.talk_of(episodes)}
        told = s.histories_of(episodes, reader, options.histories, tokens=options.chat_tokens)
    else:
        questions = own or QUESTIONS
        told = s.histories(reader, options.histories, tokens=options.chat_tokens, seed=options.seed)
    return {kind: texts[: options.limit] for kind, texts in questions.items()}, told


def _show(result: Result) -> None:
    from rich.markup import escape

    from deltamem_mlx.evals.silence.silence import HISTORIES
    from deltamem_mlx.views.scores import as_text, table

    models = [result | own for own in result.get("models", [result])]
    named = ["model"] if len(models) > 1 else []
    made = table(*(*named, "questions on", "n", *HISTORIES), left=1 + len(named))
    for own in models:
        for line in own["scores"]:
            figures = [line[name] for name in HISTORIES]
            made.add_row(
                *([escape(Path(own["model"]).name)] if named else []),
                line["kind"],
                str(line["questions"]),
                *(
                    f"[bold]{f['nats']:.3f}[/] [dim]{f['low']:.3f}–{f['high']:.3f}[/]"
                    for f in figures
                ),
            )
    output.result(as_text(made) + "\n")
    output.result("KL(plain ‖ with memory) of an answer's first token in nats, 95 % intervals.")
    for name, meaning in HISTORIES.items():
        output.result(f"  {name}: {meaning}")
