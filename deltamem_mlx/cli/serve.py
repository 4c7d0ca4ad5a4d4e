"""`deltamem-mlx serve`: a server for OpenAI's and Anthropic's clients whose named memories stay."""

import os
import signal
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import (
    has_memory,
    load_draft_model,
    load_pair,
    refuse_without_memory,
)
from deltamem_mlx.cli.frame.parse import json_object
from deltamem_mlx.cli.frame.serving import serve_until_ended, served_name
from deltamem_mlx.cli.options import serve as s
from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.files.places import is_own_folder, memories_folder
from deltamem_mlx.problems import first_few
from deltamem_mlx.serve.requests.sampling import check_defaults
from deltamem_mlx.serve.settings import ServeSettings, SettingsError, check_exposure

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

USUAL = ServeSettings()


@command(
    "deltamem-mlx serve --memory-dir memories",
    "deltamem-mlx serve --model MODEL --adapter ADAPTER --port 8080 --memory-dir memories",
    "deltamem-mlx serve --named",
    """curl localhost:8080/v1/chat/completions -H 'X-Delta-Mem-Session: me' -d '{"messages": """
    """[{"role": "user", "content": "My dog is called Rex."}]}'""",
    defaults=True,
)
def serve(
    model: o.Model = None,
    adapter: o.Adapter = None,
    draft_model: o.DraftModel = None,
    num_draft_tokens: o.NumDraftTokens = USUAL.num_draft_tokens,
    host: s.Host = USUAL.host,
    port: s.Port = USUAL.port,
    api_key: s.ApiKey = USUAL.api_key,
    insecure: s.Insecure = USUAL.insecure,
    allowed_origins: s.AllowedOrigins = "",
    allowed_hosts: s.AllowedHosts = "",
    memory_dir: s.MemoryDir = USUAL.memory_dir,
    named: s.Named = USUAL.named,
    memory_bytes: s.MemoryBytes = USUAL.memory_bytes,
    context_dir: s.ContextDir = USUAL.context_dir,
    context_bytes: s.ContextBytes = USUAL.context_bytes,
    undo_turns: s.UndoTurns = USUAL.undo_turns,
    one_chat: s.OneChat = USUAL.one_chat,
    session_header: s.SessionHeader = None,
    task_header: s.TaskHeader = None,
    max_context: s.MaxContext = USUAL.max_context,
    max_tokens: s.MaxTokens = USUAL.max_tokens,
    max_tokens_limit: s.MaxTokensLimit = USUAL.max_tokens_limit,
    max_prompt_tokens: s.MaxPromptTokens = USUAL.max_prompt_tokens,
    max_body_bytes: s.MaxBodyBytes = USUAL.max_body_bytes,
    max_queue: s.MaxQueue = USUAL.max_queue,
    max_connections: s.MaxConnections = USUAL.max_connections,
    wait: s.Wait = USUAL.wait,
    request_timeout: s.RequestTimeout = USUAL.request_timeout,
    grace: s.Grace = USUAL.grace,
    temp: o.Temp = USUAL.temp,
    top_p: o.TopP = USUAL.top_p,
    top_k: o.TopK = USUAL.top_k,
    min_p: o.MinP = USUAL.min_p,
    chat_template_args: s.ChatTemplateArgs = "{}",
    decode_concurrency: s.DecodeConcurrency = USUAL.decode_concurrency,
    prompt_concurrency: s.PromptConcurrency = USUAL.prompt_concurrency,
    prefill_step_size: o.PrefillStepSize = USUAL.prefill_step_size,
    prompt_cache_size: s.PromptCacheSize = USUAL.prompt_cache_size,
    prompt_cache_bytes: s.PromptCacheBytes = USUAL.prompt_cache_bytes,
    log_format: s.LogFormat = "text",
    pipeline: o.Pipeline = False,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Serve a model to OpenAI's and Anthropic's clients, with memories that stay.

    mlx-lm's server, and more: a request that names a memory (the header X-Delta-Mem-Session) is
    answered from it and written into it. Others leave nothing behind. docs/server.md has the rest.

    Prints its address when it is ready: a browser shows a chat with the memories there. Ctrl-C ends
    it. Without --model and --adapter, the built-in demo pair answers.
    """
    given = {**locals(), "session_headers": session_header, "task_headers": task_header}
    if not has_memory(model, adapter):
        refuse_without_memory({"serve": True})
    settings = _settings({f.name: given[f.name] for f in fields(ServeSettings) if f.name in given})
    _check_together(draft_model, settings, pipeline)
    loaded = _load(model, adapter, draft_model, pipeline, trust_remote_code)
    _say_what_lasts(settings)
    (_follow if launched.follows() else serve_until_ended)(*loaded, settings, log_format)


def _load(
    model: str | None,
    adapter: str | None,
    draft_model: str | None,
    pipeline: bool,
    trust_remote_code: bool,
) -> tuple["nn.Module", "TokenizerWrapper", str, "nn.Module | None"]:
    """The model, its tokenizer and name, and what drafts for it."""
    trust = {"trust_remote_code": trust_remote_code}
    loaded, tokenizer = load_pair(model, adapter, pipeline=pipeline, **trust)
    draft = load_draft_model(draft_model, loaded, tokenizer, **trust)
    return loaded, tokenizer, served_name(model, loaded), draft


def _check_together(draft_model: str | None, settings: ServeSettings, pipeline: bool) -> None:
    """Raises UsageError for what cannot be done with a draft model, or in several processes."""
    _check_spread(draft_model, settings, pipeline)
    for name in ("decode_concurrency", "prompt_concurrency"):
        if draft_model is not None and getattr(settings, name) not in (1, getattr(USUAL, name)):
            raise UsageError(
                f"--draft-model and --{name.replace('_', '-')}: mlx-lm drafts for one answer at a "
                "time, and they wait for each other then. Give one of the two."
            )


def _check_spread(draft_model: str | None, settings: ServeSettings, pipeline: bool) -> None:
    """Raises UsageError for what cannot be done in several processes."""
    if launched.rank() is not None and draft_model is not None:
        raise UsageError("--draft-model: mlx-lm drafts in one process. Leave it out.")
    if launched.rank() is not None and settings.context_dir is not None:
        raise UsageError("--context-dir: each process has a part of a context only. Leave it out.")
    if pipeline and settings.prompt_cache_bytes is not None:
        raise UsageError(
            "--pipeline and --prompt-cache-bytes: the processes hold different numbers of bytes. "
            "Give --prompt-cache-size."
        )


def _say_what_lasts(settings: ServeSettings) -> None:
    """Notes on where memories lie, and on files there that no key would reach."""
    from deltamem_mlx.memory.shelf import MemoryShelf

    if launched.follows():
        return
    if settings.memory_dir is None:
        output.note(
            "Memories are gone when this server ends. To keep them: --memory-dir FOLDER, or "
            "--named for those that `deltamem-mlx memories` lists."
        )
        return
    shelf = MemoryShelf(settings.memory_dir)
    if settings.named and (hashed := shelf.hashed()):
        output.warn(
            f"Memories in {shelf.folder} that a server without --named keeps by their keys' "
            f"hashes: {len(hashed)}. With --named they have those hashes for names."
        )
    elif not settings.named and (named := shelf.named()):
        output.warn(
            f"Memories in {shelf.folder} that go by names are not this server's, whose files go by "
            f"hashes of keys: {', '.join(first_few(named, 8))}. --named serves them by their names."
        )


def _settings(options: dict[str, Any]) -> ServeSettings:
    """The command's options as settings."""
    if options["api_key"] is None:  # not by the option: it would come before a -c FILE
        options["api_key"] = os.environ.get("DELTAMEM_API_KEY")
    folder = options["memory_dir"]
    if options["named"] and folder is None:
        options["memory_dir"] = memories_folder()
    elif not options["named"] and folder is not None and is_own_folder(folder):
        raise UsageError(
            f"--memory-dir {folder}: that is your own folder, where memories go by their names. "
            "Add --named to serve them, or give another folder."
        )
    for name in ("session_headers", "task_headers"):
        options[name] = tuple(options[name] or ())
    text = options["chat_template_args"]
    options["chat_template_args"] = json_object("--chat-template-args", text)
    for name in ("allowed_origins", "allowed_hosts"):
        parts = (part.strip().rstrip("/") for part in options[name].split(","))
        options[name] = tuple(filter(None, parts))
    try:
        settings = ServeSettings(**options)
        check_exposure(settings)
        check_defaults(settings)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    return settings


def _follow(
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    name: str,
    draft: "nn.Module | None",
    settings: ServeSettings,
    log_format: str,
) -> None:
    """Do what the first process does, until that ends."""
    from deltamem_mlx.serve.serving import Serving

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first one hears it, and tells
    serving = Serving(model, tokenizer, name, replace(settings, memory_dir=None), draft)
    serving.generator.join()
    if not serving.generator.is_over:
        raise RuntimeError("the thread that owns the model ended; --debug says by what error")
