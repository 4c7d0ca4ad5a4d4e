"""What commands that hold a conversation share: their options, and the session to begin with."""

import secrets
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.parse import json_object
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.problems import first_few

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.generate import GenerationResponse
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.session.generation import Generation
    from deltamem_mlx.session.session import MemorySession


def _memory(value: Path | None) -> Path | None:
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
        callback=_memory,
        help="Go on with this memory, if there is one, and save it after each answer: by its name "
        "(see `memories`), or a file.",
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


def check_memory_path(memory: Path | None) -> None:
    """Raises UsageError unless a memory can lie at this path."""
    if memory is not None and memory.is_dir():
        raise UsageError(f"--memory: {str(memory)!r} is a folder; expected a file.")


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


class Decoding(Protocol):
    """The options of a command that decides how answers are generated."""

    @property
    def max_tokens(self) -> int: ...
    @property
    def temp(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_p(self) -> float: ...
    @property
    def kv_bits(self) -> int | None: ...
    @property
    def kv_group_size(self) -> int: ...
    @property
    def quantized_kv_start(self) -> int: ...
    @property
    def prefill_step_size(self) -> int | None: ...
    @property
    def draft_model(self) -> str | None: ...
    @property
    def num_draft_tokens(self) -> int: ...


class Talking(Protocol):
    """The options of a command that decides what a session begins with."""

    @property
    def system_prompt(self) -> str | None: ...
    @property
    def chat_template_config(self) -> str | None: ...
    @property
    def max_kv_size(self) -> int | None: ...


def generation_of(options: Decoding) -> "Generation":
    """The options as arguments of a session's turns."""
    from mlx_lm.sample_utils import make_sampler

    from deltamem_mlx.session.remembering import short_step

    generation: Generation = {
        "max_tokens": options.max_tokens,
        "sampler": make_sampler(options.temp, options.top_p, options.min_p, top_k=options.top_k),
        "prefill_step_size": options.prefill_step_size or short_step(),
        "kv_bits": options.kv_bits,
        "kv_group_size": options.kv_group_size,
        "quantized_kv_start": options.quantized_kv_start,
    }
    if options.draft_model is not None:
        generation["num_draft_tokens"] = options.num_draft_tokens
    return generation


def session_settings(options: Talking) -> dict[str, Any]:
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
    output.note(f"No memory file {memory} yet: the memory is empty.{_others(memory)}")
    return new


def _others(memory: Path) -> str:
    """Which memories there are, where a name was given that none has.

    Their folder is made: what is saved there is its owner's only, the names as well.
    """
    from deltamem_mlx.files.places import memories_folder
    from deltamem_mlx.memory.shelf import MemoryShelf

    if memory.parent != memories_folder():
        return ""
    memory.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    names = MemoryShelf().names()
    return f" There is: {', '.join(first_few(names, 8))}." if names else ""


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
