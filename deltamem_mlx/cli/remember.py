"""`deltamem-mlx remember`: files into a memory, and nothing asked."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import has_memory, refuse_without_memory
from deltamem_mlx.cli.frame.naming import check_memory_path
from deltamem_mlx.cli.frame.session import (
    HoldingOptions,
    load_holding,
    open_session,
    template_kwargs,
)
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.cli.frame.telling import FilesTold
    from deltamem_mlx.session.session import MemorySession
    from deltamem_mlx.text.sources import Source

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE...",
        help="Text, Markdown, .jsonl or .json of messages, exports of ChatGPT and mem0; folders, "
        "patterns in quotes; - reads text from standard input.",
        show_default=False,
    ),
]
Skip = Annotated[
    int,
    typer.Option(
        "--skip",
        metavar="MESSAGES",
        min=0,
        help="Leave out the first so many messages (a paragraph of a text is one): to go on "
        "where Ctrl-C ended it.",
    ),
]
OnlyNew = Annotated[
    bool,
    typer.Option(
        "--only-new",
        help="Leave out what the memory was told before: of files that were added to, what is new.",
    ),
]
MaxContext = Annotated[
    int,
    typer.Option(
        "--max-context",
        min=1,
        help="Read a long file with this many of its tokens in view.",
        rich_help_panel=o.CONTEXT,
    ),
]


@dataclass(frozen=True, kw_only=True)
class RememberOptions(HoldingOptions):
    """What `remember` was asked for."""

    files: Files
    skip: Skip = 0
    only_new: OnlyNew = False
    max_context: MaxContext = 4096
    prefill_step_size: o.PrefillStepSize = None
    json: o.Json = False


@command(
    "deltamem-mlx remember notes.md --memory me.safetensors",
    "deltamem-mlx remember notes/ 'letters/*.txt' --model MODEL --adapter ADAPTER "
    "--memory me.safetensors",
    "deltamem-mlx remember notes/ --memory me --only-new",
    "echo 'My dog is called Rex.' | deltamem-mlx remember - --memory me.safetensors",
    defaults=True,
)
def remember(options: RememberOptions) -> None:
    """Write files into a memory.

    Of a text each paragraph is a message; of a folder the texts and messages in it are taken, at
    any depth. The memory is saved after each file. Ctrl-C ends it between two steps: what was
    written so far is saved.

    Without --model and --adapter, the built-in demo pair reads: deltamem-mlx demo --words.
    """
    from deltamem_mlx.cli.frame.telling import sources_of, tell, undo_line
    from deltamem_mlx.memory.history import HISTORY_TURNS

    if options.memory is None:
        raise UsageError(
            "Say which memory is to remember: --memory NAME, or --memory FILE.safetensors"
        )
    if not has_memory(options.model, options.adapter):
        refuse_without_memory({"remember": True})
    if options.only_new and options.skip:
        raise UsageError("--only-new and --skip: give one of them; what was told is not new.")
    launched.first(lambda: check_memory_path(options.memory, new=options.new_memory))
    kwargs = template_kwargs(options.chat_template_config)
    sources = launched.first(lambda: sources_of(options.files, "remember"))
    sources = _without_first(options.skip, sources)
    if options.only_new:
        memory, given = options.memory, sources
        sources = launched.first(lambda: _only_new(memory, given))
        if not sources:
            _say_nothing_new(given, options)
            return
    model, tokenizer = load_holding(options)
    settings = {"template_kwargs": kwargs, "max_context": options.max_context}
    session = open_session(options.memory, model, tokenizer, settings)

    def remembered(source: "Source", tokens: int) -> None:
        session.save(str(options.memory), history=HISTORY_TURNS)
        session.forget_context()
        output.note(f"Remembered {source.name}: {tokens:,} tokens.")

    told = tell(
        session,
        sources,
        step_size=options.prefill_step_size,
        undo=partial(undo_line, options.memory),
        after_each=remembered,
    )
    if told.tokens:
        session.save(options.memory, history=HISTORY_TURNS)
    _report(told, session, options)
    if told.stopped_in is not None:
        raise KeyboardInterrupt


def _only_new(memory: Path, sources: list["Source"]) -> list["Source"]:
    """What of the sources the memory was not told; no model is needed to see that."""
    from deltamem_mlx.memory.file import read_memory

    told = read_memory(memory).told if memory.exists() else None
    if told is None:
        return sources
    left = [source._replace(messages=told.untold(source.messages)) for source in sources]
    return [source for source in left if source.messages]


def _say_nothing_new(sources: list["Source"], options: RememberOptions) -> None:
    from deltamem_mlx.files.places import shown_memory

    assert options.memory is not None
    if options.json:
        from deltamem_mlx.memory.file import read_memory

        counts = dict.fromkeys(("files", "messages", "tokens", "seconds", "skip"), 0)
        counts["tokens_written"] = sum(read_memory(options.memory).tokens_written)
        output.result_json({"memory": str(options.memory), **counts, "stopped_in": None})
        return
    files = f"{len(sources)} file{'s' * (len(sources) != 1)}"
    output.result(f"{shown_memory(options.memory)}: nothing new in {files}.")


def _without_first(messages: int, sources: list["Source"]) -> list["Source"]:
    """Sources without their first messages; raises UsageError if nothing is left."""
    left = []
    for source in sources:
        if messages < len(source.messages):
            left.append(source._replace(messages=source.messages[messages:]))
        messages = max(0, messages - len(source.messages))
    if not left:
        total = sum(len(source.messages) for source in sources)
        raise UsageError(f"--skip: there are {total:,} messages only; nothing is left to remember.")
    return left


def _report(told: "FilesTold", session: "MemorySession", options: RememberOptions) -> None:
    from deltamem_mlx.files.places import shown_memory

    assert options.memory is not None
    name, written = shown_memory(options.memory), session.stats()["tokens_written"]
    if options.json:
        output.result_json(
            {
                "memory": str(options.memory),
                "files": told.files,
                "messages": told.messages,
                "tokens": told.tokens,
                "tokens_written": written,
                "seconds": told.seconds,
                "stopped_in": told.stopped_in,
                "skip": options.skip + told.messages,
            }
        )
    elif told.stopped_in is not None:
        output.result(told.stopped(f" and saved to {name}"))
        skip = "" if options.only_new else f" with --skip {options.skip + told.messages}"
        output.note(f"To go on: the same command{skip}")
    else:
        speed = told.tokens / max(told.seconds, 1e-9)
        output.result(
            f"{name}: {told.tokens:,} tokens of {told.files} "
            f"file{'s' * (told.files != 1)} written in {told.seconds:.1f} s ({speed:,.0f} a "
            f"second), {written:,} in all."
        )
