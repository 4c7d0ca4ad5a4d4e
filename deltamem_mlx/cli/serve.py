"""`deltamem-mlx serve`: an OpenAI-compatible server whose named memories stay."""

import logging
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import has_memory, load_pair, refuse_without_memory
from deltamem_mlx.cli.frame.parse import json_object
from deltamem_mlx.cli.options import shared as o

SERVER, LIMITS, BATCHING = "Server", "Limits", "Batching and prompt cache"


def _option(*names: str, panel: str, help: str, **settings: object):
    return typer.Option(*names, help=help, rich_help_panel=panel, **settings)


Host = Annotated[str, _option("--host", panel=SERVER, help="Listen at this address.")]
Port = Annotated[
    int,
    _option("--port", panel=SERVER, min=0, max=65535, help="Listen at this port; 0: a free one."),
]
ApiKey = Annotated[
    str | None,
    _option(
        "--api-key",
        panel=SERVER,
        envvar="DELTAMEM_API_KEY",
        help="Answer only requests with this key, as Authorization: Bearer KEY.",
    ),
]
Insecure = Annotated[
    bool,
    _option("--insecure", panel=SERVER, help="Let other machines connect without a key."),
]
AllowedOrigins = Annotated[
    str,
    _option(
        "--allowed-origins",
        panel=SERVER,
        metavar="URL,URL",
        help="Web pages whose scripts may call; * for all. Default: none.",
    ),
]
MemoryDir = Annotated[
    Path | None,
    _option(
        "--memory-dir",
        panel=o.MEMORY,
        metavar="FOLDER",
        help="Keep a file for each memory here, written after each turn. Default: in RAM only.",
    ),
]
MemoryBytes = Annotated[
    int,
    _option(
        "--memory-bytes",
        panel=o.MEMORY,
        min=1,
        help="RAM for memories and their contexts; contexts not used for long go first.",
    ),
]
MaxContext = Annotated[
    int,
    _option(
        "--max-context",
        panel=o.CONTEXT,
        min=1,
        help="Tokens in the context of one memory; the memory keeps what leaves it.",
    ),
]
MaxTokens = Annotated[
    int, _option("--max-tokens", "-m", panel=LIMITS, min=1, help="Length of an answer by default.")
]
MaxTokensLimit = Annotated[
    int, _option("--max-tokens-limit", panel=LIMITS, min=1, help="Longest answer to ask for.")
]
MaxPromptTokens = Annotated[
    int, _option("--max-prompt-tokens", panel=LIMITS, min=1, help="Longest prompt.")
]
MaxBodyBytes = Annotated[
    int, _option("--max-body-bytes", panel=LIMITS, min=1, help="Largest request body.")
]
MaxQueue = Annotated[
    int, _option("--max-queue", panel=LIMITS, min=1, help="Requests waiting or running at most.")
]
MaxConnections = Annotated[
    int, _option("--max-connections", panel=LIMITS, min=1, help="Open connections at most.")
]
Wait = Annotated[
    float,
    _option("--wait", panel=LIMITS, min=0, help="Seconds to wait for a memory that is in use."),
]
RequestTimeout = Annotated[
    float,
    _option(
        "--request-timeout", panel=LIMITS, min=0.1, help="Seconds for a client to send a request."
    ),
]
Grace = Annotated[
    float, _option("--grace", panel=LIMITS, min=0, help="Seconds for answers to end at shutdown.")
]
ChatTemplateArgs = Annotated[
    str,
    _option(
        "--chat-template-args",
        panel=o.MODEL,
        metavar="JSON",
        help="""Settings of the chat template, such as '{"enable_thinking": false}'.""",
    ),
]
DecodeConcurrency = Annotated[
    int, _option("--decode-concurrency", panel=BATCHING, min=1, help="Answers decoded at once.")
]
PromptConcurrency = Annotated[
    int, _option("--prompt-concurrency", panel=BATCHING, min=1, help="Prompts fed at once.")
]
PromptCacheSize = Annotated[
    int, _option("--prompt-cache-size", panel=BATCHING, min=1, help="Prompts kept for reuse.")
]
PromptCacheBytes = Annotated[
    int | None,
    _option("--prompt-cache-bytes", panel=BATCHING, min=1, help="Bytes of prompts kept."),
]


@command(
    "deltamem-mlx serve --memory-dir memories",
    "deltamem-mlx serve --model MODEL --adapter ADAPTER --port 8080 --memory-dir memories",
    """curl localhost:8080/v1/chat/completions -H 'X-Delta-Mem-Session: me' -d '{"messages": """
    """[{"role": "user", "content": "My dog is called Rex."}]}'""",
)
def serve(
    model: o.Model = None,
    adapter: o.Adapter = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    api_key: ApiKey = None,
    insecure: Insecure = False,
    allowed_origins: AllowedOrigins = "",
    memory_dir: MemoryDir = None,
    memory_bytes: MemoryBytes = 1 << 30,
    max_context: MaxContext = 8192,
    max_tokens: MaxTokens = 512,
    max_tokens_limit: MaxTokensLimit = 8192,
    max_prompt_tokens: MaxPromptTokens = 32768,
    max_body_bytes: MaxBodyBytes = 4 << 20,
    max_queue: MaxQueue = 256,
    max_connections: MaxConnections = 512,
    wait: Wait = 30.0,
    request_timeout: RequestTimeout = 30.0,
    grace: Grace = 10.0,
    temp: o.Temp = 0.0,
    top_p: o.TopP = 1.0,
    top_k: o.TopK = 0,
    min_p: o.MinP = 0.0,
    chat_template_args: ChatTemplateArgs = "{}",
    decode_concurrency: DecodeConcurrency = 32,
    prompt_concurrency: PromptConcurrency = 8,
    prefill_step_size: o.PrefillStepSize = 2048,
    prompt_cache_size: PromptCacheSize = 10,
    prompt_cache_bytes: PromptCacheBytes = None,
    trust_remote_code: o.TrustRemoteCode = False,
) -> None:
    """Serve a model to OpenAI's clients, with memories that stay.

    mlx-lm's server, and more: a request that names a memory (the header X-Delta-Mem-Session) is
    answered from it and written into it, and may send its new message alone. Others leave nothing
    behind. docs/server.md describes the requests.

    Prints its address when it is ready; Ctrl-C ends it. Without --model and --adapter, the built-in
    demo pair answers.
    """
    options = dict(locals())
    if not has_memory(model, adapter):
        refuse_without_memory({"serve": True})
    from deltamem_mlx.serve.settings import ServeSettings, check_exposure

    for name in ("model", "adapter", "trust_remote_code"):
        del options[name]
    options["chat_template_args"] = json_object("--chat-template-args", chat_template_args)
    options["allowed_origins"] = tuple(filter(None, allowed_origins.split(",")))
    settings = ServeSettings(**options)
    try:
        check_exposure(settings)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    from deltamem_mlx.adapters.loading import base_model_of
    from deltamem_mlx.serve.log import set_up
    from deltamem_mlx.serve.server import Server

    pair = load_pair(model, adapter, trust_remote_code=trust_remote_code)
    set_up(logging.WARNING if output.settings.quiet else logging.INFO)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    name = str(model or base_model_of(pair[0])["name"])
    with Server(*pair, name, settings) as server:
        output.result(server.url)
        ended.wait()
