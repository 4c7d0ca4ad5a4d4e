"""`deltamem-mlx generate`: an answer to one prompt, from what was remembered."""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.answering import GeneratedAnswer, show_answer
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import has_memory, refuse_without_memory
from deltamem_mlx.cli.frame.naming import check_memory_path
from deltamem_mlx.cli.frame.parse import standard_input
from deltamem_mlx.cli.frame.progress import watched
from deltamem_mlx.cli.frame.session import (
    AnsweringOptions,
    check_answering,
    generation_of,
    load_answering,
    open_session,
    seed_with,
    session_settings,
    template_kwargs,
    without_memory,
)
from deltamem_mlx.cli.frame.telling import tell_unknown_words
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.generate import GenerationResponse
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.session.session import MemorySession
    from deltamem_mlx.text.sources import Source

Text = Annotated[
    str | None,
    typer.Argument(
        metavar="PROMPT",
        help="What to answer, in quotes; - reads standard input.",
        show_default=False,
    ),
]
Remember = Annotated[
    list[Path] | None,
    typer.Option(
        "--remember",
        metavar="FILE",
        help="Write a file or folder into the memory first, as `remember` does. Repeatable.",
        rich_help_panel=o.MEMORY,
    ),
]
KeepContext = Annotated[
    bool,
    typer.Option(
        "--keep-context",
        help="Let what was remembered stay in the context, beside being in the memory.",
        rich_help_panel=o.MEMORY,
    ),
]
Compare = Annotated[
    bool,
    typer.Option(
        "--compare",
        help="Answer the same prompt without memory, too.",
        rich_help_panel=o.MEMORY,
    ),
]


@dataclass(frozen=True, kw_only=True)
class GenerateOptions(AnsweringOptions):
    """What `generate` was asked for."""

    text: Text = None
    prompt: o.Prompt = None
    remember: Remember = None
    keep_context: KeepContext = False
    compare: Compare = False
    json: o.Json = False


@command(
    "deltamem-mlx generate 'where does anna live ?' --remember facts.txt",
    "deltamem-mlx generate 'My dog is called Rex.' --model MODEL --adapter ADAPTER --memory me",
    "deltamem-mlx generate 'What did I note?' --model MODEL --adapter ADAPTER --remember notes.txt "
    "--compare",
    "echo Hello | deltamem-mlx generate - --model MODEL",
    defaults=True,
)
def generate(options: GenerateOptions) -> None:
    """Answer one prompt.

    What --remember names is written into the memory, and its text is then dropped from the
    context: the answer comes from the memory alone, unless --keep-context.

    With --memory, the memory goes on from one command to the next. Without --model and --adapter,
    the built-in demo pair answers; how to speak to it: deltamem-mlx demo --words.
    """
    text = _prompt(options)
    notes = _checked(options)
    model, tokenizer, draft = load_answering(options)
    goes_on = options.memory is not None and options.memory.exists()
    if options.model is None and options.adapter is None and not goes_on:
        output.note("The built-in pair answers. A real model: --model MODEL --adapter ADAPTER")
    tell_unknown_words(tokenizer, text)
    seed_with(options.seed)
    if has_memory(options.model, options.adapter):
        answer, more = _from_memory(options, (model, tokenizer, draft), text, notes)
    else:
        pieces = _plain(model, tokenizer, draft, text, options)
        answer, more = show_answer(pieces, quiet=options.json), {}
    _report(answer, options, more)


def _checked(options: GenerateOptions) -> list["Source"]:
    """What is to be remembered; raises UsageError for flags that do not go together."""
    check_answering(options)
    if not has_memory(options.model, options.adapter):
        refuse_without_memory(
            {
                "--remember": options.remember,
                "--keep-context": options.keep_context,
                "--memory": options.memory,
                "--read-only": options.read_only,
                "--compare": options.compare,
            }
        )
    notes = launched.first(lambda: _notes(options.remember or []))
    new, read_only = options.new_memory, options.read_only
    launched.first(lambda: check_memory_path(options.memory, new=new, read_only=read_only))
    return notes


def _from_memory(
    options: GenerateOptions,
    loaded: tuple["nn.Module", "TokenizerWrapper", "nn.Module | None"],
    text: str,
    notes: list["Source"],
) -> tuple[GeneratedAnswer, dict[str, Any]]:
    """The answer, and what else is to be said of it. The memory is saved."""
    from deltamem_mlx.files.places import shown_memory
    from deltamem_mlx.memory.history import HISTORY_TURNS

    model, tokenizer, draft = loaded
    settings, generation = session_settings(options), generation_of(options)
    settings["draft_model"] = draft
    session = open_session(options.memory, model, tokenizer, settings)
    remembered = _remember(session, notes, options) if notes else 0
    if options.compare and not options.json:
        output.result("With memory:")
    with session.read_only() if options.read_only else nullcontext():
        pieces = watched(lambda g: session.stream(text, **g), generation)
        answer = show_answer(pieces, quiet=options.json)
    stats = session.stats()
    if options.memory is not None and not options.read_only:
        session.save(options.memory, history=HISTORY_TURNS)
        output.note(f"Saved the memory to {shown_memory(options.memory)}.")
    if answer.lost is not None:
        raise answer.lost
    more: dict[str, Any] = {
        "remembered_tokens": remembered,
        "tokens_written": stats["tokens_written"],
        "memory_bytes": stats["memory_bytes"],
    }
    if options.compare:
        if not options.json:
            output.result("\nWithout memory:")
        seed_with(options.seed)
        without = without_memory(model, tokenizer, text, settings, generation)
        more["without_memory"] = show_answer(without, quiet=options.json).text
    return answer, more


def _prompt(options: GenerateOptions) -> str:
    if options.text is not None and options.prompt is not None:
        raise UsageError("There are two prompts: give it in quotes, or by --prompt.")
    prompt = options.text if options.prompt is None else options.prompt
    if prompt is None:
        raise UsageError('Give a prompt: generate "PROMPT", or - to read standard input.')
    text = standard_input() if prompt == "-" else prompt
    if not text.strip():
        where = "from standard input " if prompt == "-" else ""
        raise UsageError(f"The prompt {where}is empty.")
    return text


def _notes(paths: list[Path]) -> list["Source"]:
    from deltamem_mlx.cli.frame.telling import sources_of

    return sources_of(paths, "--remember")


def _remember(session: "MemorySession", notes: list["Source"], options: GenerateOptions) -> int:
    """Write the notes into the memory. Each is saved before it is called remembered: what follows,
    the answer above all, may be stopped or killed."""
    from deltamem_mlx.cli.frame.telling import tell, undo_line
    from deltamem_mlx.files.places import shown_memory
    from deltamem_mlx.memory.history import HISTORY_TURNS

    kept = None if options.read_only else options.memory

    def remembered(source: "Source", tokens: int) -> None:
        if not options.keep_context:
            session.forget_context()
        if kept is not None:
            session.save(kept, history=HISTORY_TURNS)
        output.note(f"Remembered {source.name}: {tokens} tokens.")

    undo = None
    if (memory := kept) is not None:

        def undo(turns: int) -> str:  # the answer, which is still to come, is one as well
            return undo_line(memory, turns + 1)

    told = tell(
        session,
        notes,
        step_size=options.prefill_step_size,
        undo=undo,
        after_each=remembered,
    )
    if told.stopped_in is not None:
        saved = ""
        if kept is not None and told.tokens:
            session.save(kept, history=HISTORY_TURNS)
            saved = f" and saved to {shown_memory(kept)}"
        output.note(told.stopped(saved))
        raise KeyboardInterrupt
    return told.tokens


def _plain(
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    draft: "nn.Module | None",
    text: str,
    options: GenerateOptions,
) -> Iterator["GenerationResponse"]:
    """mlx-lm's own answer, for a model without an adapter."""
    from mlx_lm import stream_generate

    prompt: str | list[int] = text
    if tokenizer.has_chat_template:
        system = options.system_prompt
        messages = [{"role": "system", "content": system}] if system is not None else []
        messages.append({"role": "user", "content": text})
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, **template_kwargs(options.chat_template_config)
        )
    size = options.max_kv_size
    yield from watched(
        lambda g: stream_generate(
            model, tokenizer, prompt, draft_model=draft, **g, max_kv_size=size
        ),
        generation_of(options),
    )


def _report(answer: GeneratedAnswer, options: GenerateOptions, more: dict[str, Any]) -> None:
    drafts = options.draft_model is not None
    if options.json:
        values = asdict(answer)
        del values["lost"]
        if not drafts:
            del values["drafted_tokens"]
        output.result_json(values | more)
    guessed = f" ({answer.drafted_tokens} of them drafted)" if drafts else ""
    output.note(
        f"Prompt: {answer.prompt_tokens} tokens, {answer.prompt_tps:.1f} tokens/s"
        f" · answer: {answer.generation_tokens} tokens{guessed}, "
        f"{answer.generation_tps:.1f} tokens/s"
        f" · first token: {answer.time_to_first_token:.2f} s"
        f" · peak memory: {answer.peak_memory:.3f} GB"
        f" · memory state: {more.get('memory_bytes', 0):,} bytes"
    )
