"""What commands that hold a conversation share: their options, and the session to begin with."""

import secrets
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import load_draft_model, load_pair
from deltamem_mlx.cli.frame.naming import missing_memory
from deltamem_mlx.cli.frame.parse import json_object
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.generate import GenerationResponse
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.session.generation import Generation
    from deltamem_mlx.session.session import MemorySession


def _memory(value: str | None) -> Path | None:
    """Callback of `--memory`: the file that a name or a path stands for."""
    if value is None:
        return None
    from deltamem_mlx.files.places import memory_path

    try:
        return memory_path(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Memory = Annotated[
    Path | None,
    typer.Option(
        "--memory",
        metavar="NAME|FILE.safetensors",
        parser=str,  # a Path would lose the ./ that tells a file from a name
        callback=_memory,
        help="Go on with this memory, if there is one, and save it after each answer: by its name "
        "(see `memories`), or a file.",
        rich_help_panel=o.MEMORY,
    ),
]
NewMemory = Annotated[
    bool,
    typer.Option(
        "--new-memory",
        help="Begin the --memory if there is none, even where one is called nearly so.",
        rich_help_panel=o.MEMORY,
    ),
]
ReadOnly = Annotated[
    bool,
    typer.Option(
        "--read-only",
        help="Do not learn from prompts and answers, and leave the --memory file as it is.",
        rich_help_panel=o.MEMORY,
    ),
]
QuantizedKvStart = Annotated[
    int,
    typer.Option(
        "--quantized-kv-start",
        min=0,
        help="With --kv-bits: quantize from this many tokens on.",
        rich_help_panel=o.CONTEXT,
    ),
]
ChatTemplateConfig = Annotated[
    str | None,
    typer.Option(
        "--chat-template-config",
        metavar="JSON",
        help="""Settings of the chat template, such as '{"enable_thinking": false}'.""",
    ),
]


def template_kwargs(config: str | None) -> dict[str, Any]:
    """The JSON object of `--chat-template-config`; raises UsageError for anything else."""
    return json_object("--chat-template-config", config)


def named_memory(text: str) -> Path | None:
    """The file of the user's memory of this name, if there is one; says what else is called so."""
    from deltamem_mlx.files.places import memory_called

    path = memory_called(text)
    if path is not None and (here := Path(text)).exists():
        what = "folder" if here.is_dir() else "file"
        output.note(f"{text} is taken for the memory of that name; the {what} here is ./{text}")
    return path


def check_kv_options(kv_bits: int | None, max_kv_size: int | None, draft_model: str | None) -> None:
    """Raises UsageError for what mlx-lm cannot do together."""
    if kv_bits is not None and draft_model is not None:
        raise UsageError(
            "--kv-bits and --draft-model: mlx-lm cannot draft with a quantized KV cache. Give one "
            "of them."
        )
    if kv_bits is not None and max_kv_size is not None:
        raise UsageError(
            "--kv-bits and --max-kv-size: mlx-lm cannot quantize a KV cache of limited size. Give "
            "one of them."
        )


@dataclass(frozen=True, kw_only=True)
class HoldingOptions:
    """What commands that tell a memory something are asked for."""

    model: o.Model = None
    adapter: o.Adapter = None
    chat_template_config: ChatTemplateConfig = None
    memory: Memory = None
    new_memory: NewMemory = False
    pipeline: o.Pipeline = False
    trust_remote_code: o.TrustRemoteCode = False


@dataclass(frozen=True, kw_only=True)
class AnsweringOptions(HoldingOptions):
    """What commands that have answers generated are asked for."""

    draft_model: o.DraftModel = None
    num_draft_tokens: o.NumDraftTokens = 3
    system_prompt: o.SystemPrompt = None
    max_tokens: o.MaxTokens = 256
    read_only: ReadOnly = False
    temp: o.Temp = 0.0
    top_p: o.TopP = 1.0
    top_k: o.TopK = 0
    min_p: o.MinP = 0.0
    seed: o.Seed = None
    kv_bits: o.KvBits = None
    kv_group_size: o.KvGroupSize = 64
    quantized_kv_start: QuantizedKvStart = 5000
    max_kv_size: o.MaxKvSize = None
    prefill_step_size: o.PrefillStepSize = None


def load_answering(
    options: AnsweringOptions,
) -> tuple["nn.Module", "TokenizerWrapper", "nn.Module | None"]:
    """The model, its tokenizer, and what drafts for it."""
    model, tokenizer = load_holding(options)
    trust = options.trust_remote_code
    draft = load_draft_model(options.draft_model, model, tokenizer, trust_remote_code=trust)
    return model, tokenizer, draft


def load_holding(options: HoldingOptions) -> tuple["nn.Module", "TokenizerWrapper"]:
    """The model and its tokenizer."""
    return load_pair(
        options.model,
        options.adapter,
        pipeline=options.pipeline,
        trust_remote_code=options.trust_remote_code,
    )


def check_answering(options: AnsweringOptions) -> None:
    """Raises UsageError for what cannot be asked for, or not together."""
    template_kwargs(options.chat_template_config)
    check_kv_options(options.kv_bits, options.max_kv_size, options.draft_model)


def sampling_of(options: AnsweringOptions) -> dict[str, Any]:
    """The options as arguments of mlx-lm's ``make_sampler``."""
    return {name: getattr(options, name) for name in ("temp", "top_p", "top_k", "min_p")}


def generation_of(options: AnsweringOptions) -> "Generation":
    """The options as arguments of a session's turns."""
    from mlx_lm.sample_utils import make_sampler

    from deltamem_mlx.session.remembering import short_step

    generation: Generation = {
        "max_tokens": options.max_tokens,
        "sampler": make_sampler(**sampling_of(options)),
        "prefill_step_size": options.prefill_step_size or short_step(),
        "kv_bits": options.kv_bits,
        "kv_group_size": options.kv_group_size,
        "quantized_kv_start": options.quantized_kv_start,
    }
    if options.draft_model is not None:
        generation["num_draft_tokens"] = options.num_draft_tokens
    return generation


def session_settings(options: AnsweringOptions) -> dict[str, Any]:
    """The options as arguments of ``MemorySession``."""
    return {
        "system_prompt": options.system_prompt,
        "template_kwargs": template_kwargs(options.chat_template_config),
        "max_kv_size": options.max_kv_size,
    }


def seed_with(seed: int | None) -> None:
    """Begin MLX's random numbers at `--seed`, if it was given."""
    import mlx.core as mx

    if seed is None and not launched.world().alone:
        seed = launched.first(lambda: secrets.randbits(32))  # all are to draw the same
    if seed is not None:
        mx.random.seed(seed)


def open_session(
    memory: Path | None,
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    settings: dict[str, Any],
) -> "MemorySession":
    """A session with the memory of a file, if there is one."""
    from deltamem_mlx.session.session import MemorySession

    new = MemorySession(model, tokenizer, **settings)
    if memory is None:
        return new
    # Looked for after the session was made: a file that appears later is then another program's.
    if launched.first(memory.exists):
        return MemorySession.restore(memory, model, tokenizer, **settings)
    missing = missing_memory(memory)
    others = f" {missing.others}" if missing.others else ""
    output.note(f"No {missing.called} yet: the memory is empty.{others}")
    return new


def without_memory(
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    text: str,
    settings: dict[str, Any],
    generation: "Generation",
) -> Generator["GenerationResponse", None, None]:
    """The answer of the model alone: nothing was remembered, and nothing is while answering."""
    from deltamem_mlx.session.session import MemorySession

    session = MemorySession(model, tokenizer, **settings)
    with session.read_only():
        yield from session.stream(text, **generation)
