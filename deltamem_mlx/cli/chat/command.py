"""`deltamem-mlx chat`: a conversation in the terminal whose memory outlives its context."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltamem_mlx.cli.frame import errors, launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.load import has_memory, load_draft_model, load_pair
from deltamem_mlx.cli.frame.session import (
    ChatTemplateConfig,
    Memory,
    QuantizedKvStart,
    ReadOnly,
    check_kv_options,
    check_memory_path,
    generation_of,
    open_session,
    seed_with,
    session_settings,
    template_kwargs,
)
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from deltamem_mlx.session.session import MemorySession

MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        min=1,
        help="Forget the context when it would exceed this many tokens; the newest turns stay.",
        rich_help_panel=o.CONTEXT,
    ),
]


@dataclass(frozen=True)
class ChatOptions:
    """What `chat` was asked for."""

    model: o.Model = None
    adapter: o.Adapter = None
    draft_model: o.DraftModel = None
    num_draft_tokens: o.NumDraftTokens = 3
    system_prompt: o.SystemPrompt = None
    chat_template_config: ChatTemplateConfig = None
    max_tokens: o.MaxTokens = 256
    memory: Memory = None
    read_only: ReadOnly = False
    temp: o.Temp = 0.0
    top_p: o.TopP = 1.0
    top_k: o.TopK = 0
    min_p: o.MinP = 0.0
    seed: o.Seed = None
    max_context: MaxContext = None
    kv_bits: o.KvBits = None
    kv_group_size: o.KvGroupSize = 64
    quantized_kv_start: QuantizedKvStart = 5000
    max_kv_size: o.MaxKvSize = None
    prefill_step_size: o.PrefillStepSize = None
    pipeline: o.Pipeline = False
    trust_remote_code: o.TrustRemoteCode = False


@command(
    "deltamem-mlx chat",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --memory me.safetensors",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --max-context 2048",
    defaults=True,
)
def chat(options: ChatOptions) -> None:
    """Chat with a model that remembers.

    The keys are those of mlx_lm.chat: q leaves, r begins anew, h lists what else there is.
    Ctrl-C stops an answer; what was said so far stays said. Esc-Enter begins a new line, and so
    does Enter after triple quotes; what is pasted is one message. The arrow keys bring back what
    was typed before.

    With --memory, the memory is loaded from the file and saved to it after each answer. Without
    --model and --adapter, the built-in demo pair answers.
    """
    if not has_memory(options.model, options.adapter):
        raise errors.UsageError(
            "A chat needs a model with a memory: give --adapter, or use mlx_lm.chat."
        )
    template_kwargs(options.chat_template_config)
    check_kv_options(options.kv_bits, options.max_kv_size, options.draft_model)
    launched.first(lambda: check_memory_path(options.memory))

    from deltamem_mlx.cli.chat.loop import Chat
    from deltamem_mlx.cli.chat.ui import ChatUI

    model, tokenizer = load_pair(
        options.model,
        options.adapter,
        pipeline=options.pipeline,
        trust_remote_code=options.trust_remote_code,
    )
    draft = load_draft_model(
        options.draft_model, model, tokenizer, trust_remote_code=options.trust_remote_code
    )
    seed_with(options.seed)
    settings = session_settings(options)
    settings |= {"max_context": options.max_context, "draft_model": draft}
    session = open_session(options.memory, model, tokenizer, settings)
    ui = ChatUI(quiet=output.settings.quiet)
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
    Chat(session, ui, settings, generation, options.memory, options.read_only).run()


def _memory_row(session: "MemorySession", path: Path | None) -> str | None:
    if path is None:
        return None
    written = session.stats()["tokens_written"]
    return f"{written:,} tokens written, {path}" if written else f"new, {path}"
