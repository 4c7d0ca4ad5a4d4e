"""`deltamem-mlx chat`: a conversation in the terminal whose memory outlives its context."""

from pathlib import Path
from typing import TYPE_CHECKING

from deltamem_mlx.cli.chat.options import ChatOptions
from deltamem_mlx.cli.frame import errors, launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.load import has_memory
from deltamem_mlx.cli.frame.naming import check_memory_path
from deltamem_mlx.cli.frame.session import (
    check_answering,
    generation_of,
    load_answering,
    open_session,
    sampling_of,
    seed_with,
    session_settings,
)

if TYPE_CHECKING:
    from deltamem_mlx.session.session import MemorySession

_WIDEST = 32  # of a memory's name: what is longer is cut at its beginning


@command(
    "deltamem-mlx chat",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --memory me.safetensors",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --max-context 2048",
    "deltamem-mlx chat --web --memory me",
    defaults=True,
)
def chat(options: ChatOptions) -> None:
    """Chat with a model that remembers.

    The keys are those of mlx_lm.chat: q leaves, r begins anew, h lists what else there is.
    Ctrl-C stops an answer; what was said so far stays said. Esc-Enter begins a new line, and so
    does Enter after triple quotes; what is pasted is one message. The arrow keys bring back what
    was typed before.

    With --memory, the memory is loaded from the file and saved to it after each answer; /load
    goes on in another one, and leaves this one as it is. Without --model and --adapter, the
    built-in demo pair answers (deltamem-mlx demo --words). With --web, the chat is a page in the
    browser, which shows what a memory holds as well.
    """
    if not has_memory(options.model, options.adapter):
        raise errors.UsageError(
            "A chat needs a model with a memory: give --adapter, or use mlx_lm.chat."
        )
    check_answering(options)
    new, read_only = options.new_memory, options.read_only
    launched.first(lambda: check_memory_path(options.memory, new=new, read_only=read_only))
    if options.web:
        from deltamem_mlx.cli.chat.web import chat_in_browser

        chat_in_browser(options)
        return

    from deltamem_mlx.cli.chat.loop import Chat
    from deltamem_mlx.cli.chat.ui import ChatUI

    model, tokenizer, draft = load_answering(options)
    seed_with(options.seed)
    settings = session_settings(options)
    settings |= {"max_context": options.max_context, "draft_model": draft}
    session = open_session(options.memory, model, tokenizer, settings)
    ui = ChatUI(quiet=output.settings.quiet, markdown=options.markdown)
    rows = {
        "model": options.model or "the built-in pair",
        "adapter": options.adapter,
        "draft": options.draft_model,
        "system": options.system_prompt,
        "memory": _memory_row(session, options.memory),
        "max tokens": f"{options.max_tokens:,}",
    }
    ui.header({name: value for name, value in rows.items() if value})
    generation = generation_of(options)
    kept = (options.memory, options.read_only)
    Chat(session, ui, settings, generation, *kept, sampling=sampling_of(options)).run()


def _memory_row(session: "MemorySession", path: Path | None) -> str | None:
    if path is None:
        return None
    from deltamem_mlx.files.places import shown_memory

    name, written = shown_memory(path), session.stats()["tokens_written"]
    name = name if len(name) < _WIDEST else f"…{name[-_WIDEST:]}"
    return f"{name}, {f'{written:,} tokens written' if written else 'new'}"
