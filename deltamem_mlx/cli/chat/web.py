"""`chat --web`: the page of `serve`, for the one who asked."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.serving import serve_until_ended, served_name
from deltamem_mlx.cli.frame.session import load_answering, template_kwargs
from deltamem_mlx.files.places import is_name, memories_folder

if TYPE_CHECKING:
    from deltamem_mlx.cli.chat.options import ChatOptions

_ALONE = ("system_prompt", "read_only", "seed", "kv_bits", "max_kv_size", "pipeline")


def chat_in_browser(options: "ChatOptions") -> None:
    """Serve the user's own memories on a free port of this machine, and open the page there.

    Raises:
        UsageError: If the page cannot do what was asked for, or not with such a memory.
    """
    from deltamem_mlx.serve.settings import ServeSettings

    _check(options)
    name = _name(options.memory)
    model, tokenizer, draft = load_answering(options)
    usual = ServeSettings()
    settings = ServeSettings(
        port=0,
        memory_dir=memories_folder(),
        named=True,
        max_context=options.max_context or usual.max_context,
        max_tokens=options.max_tokens,
        temp=options.temp,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        chat_template_args=template_kwargs(options.chat_template_config),
        num_draft_tokens=options.num_draft_tokens,
        prefill_step_size=options.prefill_step_size or usual.prefill_step_size,
    )
    serve_until_ended(
        model,
        tokenizer,
        served_name(options.model, model),
        draft,
        settings,
        requests=False,
        begun=lambda url: _open(f"{url}/#{quote(name, safe='')}" if name else url),
    )


def _check(options: "ChatOptions") -> None:
    """Raises UsageError for what the page does not have."""
    for name in _ALONE:
        if getattr(options, name) != getattr(type(options), name):
            raise UsageError(
                f"--web and --{name.replace('_', '-')}: the page in the browser does not have "
                "that. Leave one of them out."
            )
    if launched.rank() is not None:
        raise UsageError("--web is for one process: start it without mlx.launch.")


def _name(memory: Path | None) -> str | None:
    """The name of the memory that the page begins with; None: it asks for one."""
    if memory is None:
        return None
    if memory.parent != memories_folder() or not is_name(memory.stem):
        raise UsageError(
            f"--web and --memory {memory}: the page has your memories by their names. Give a name; "
            f"`deltamem-mlx memories import {memory}` gives this file one."
        )
    return memory.stem


def _open(url: str) -> None:
    output.result(url)
    if webbrowser.open(url):
        output.note("The page is open in your browser. Ctrl-C ends it.")
    else:
        output.note("No browser was found: open this address in one. Ctrl-C ends it.")
