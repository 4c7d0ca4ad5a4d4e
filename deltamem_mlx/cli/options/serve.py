"""The options of `deltamem-mlx serve`; their defaults stand in ``ServeSettings``."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer.models import OptionInfo

from deltamem_mlx.cli.options import shared as o
from deltamem_mlx.serve.settings import MOST_SECONDS

MOST_TURNS = 1024
SERVER, LIMITS, BATCHING = "Server", "Limits", "Batching and prompt cache"


def _option(
    *names: str,
    panel: str,
    help: str,
    metavar: str | None = None,
    min: float | None = None,
    max: float | None = None,
) -> OptionInfo:
    found: OptionInfo = typer.Option(
        *names,
        help=help,
        rich_help_panel=panel,
        metavar=metavar,
        min=min,
        max=max,
    )
    return found


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
        help="Answer only requests with this key, as Authorization: Bearer KEY. Default: what "
        "DELTAMEM_API_KEY holds.",
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
AllowedHosts = Annotated[
    str,
    _option(
        "--allowed-hosts",
        panel=SERVER,
        metavar="NAME,NAME",
        help="Names to answer under without a key, beside localhost and --host; * for any.",
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
Named = Annotated[
    bool,
    _option(
        "--named",
        panel=o.MEMORY,
        help="Keys are the memories' names, and so are their files': those of --memory NAME and "
        "`memories`, where --memory-dir gives no other folder. Else files have hashes of keys.",
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
ContextDir = Annotated[
    Path | None,
    _option(
        "--context-dir",
        panel=o.CONTEXT,
        metavar="FOLDER",
        help="Keep the contexts of memories here, with what was said in them, so that a server "
        "that begins again need not feed them again. Default: in RAM only.",
    ),
]
ContextBytes = Annotated[
    int,
    _option(
        "--context-bytes",
        panel=o.CONTEXT,
        min=1,
        help="Disk for contexts; those not used for long go first.",
    ),
]
UndoTurns = Annotated[
    int,
    _option(
        "--undo-turns",
        panel=o.MEMORY,
        min=0,
        max=MOST_TURNS,
        help="Turns of each memory that can be taken back; 0: none.",
    ),
]
SessionHeader = Annotated[
    list[str] | None,
    _option(
        "--session-header",
        panel=SERVER,
        metavar="NAME",
        help="A header that names a memory, beside X-Delta-Mem-Session, such as "
        "X-OpenWebUI-Chat-Id. May be given several times.",
    ),
]
TaskHeader = Annotated[
    list[str] | None,
    _option(
        "--task-header",
        panel=SERVER,
        metavar="NAME",
        help="A header that names a client's task beside a chat, such as a title, beside "
        "X-OpenWebUI-Task. May be given several times.",
    ),
]
LogFormat = Annotated[
    Literal["text", "json"],
    _option("--log-format", panel=SERVER, help="Log lines for people, or JSON."),
]
OneChat = Annotated[
    bool,
    _option(
        "--one-chat",
        panel=o.MEMORY,
        help="A key is one chat and requests have all of it: what one leaves out is taken back, "
        "the first message too.",
    ),
]
MaxContext = Annotated[
    int | None,
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
    int,
    _option(
        "--max-tokens-limit", panel=LIMITS, min=1, help="Longest answer, whatever is asked for."
    ),
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
    _option(
        "--wait",
        panel=LIMITS,
        min=0,
        max=MOST_SECONDS,
        help="Seconds to wait for a memory that is in use.",
    ),
]
RequestTimeout = Annotated[
    float,
    _option(
        "--request-timeout",
        panel=LIMITS,
        min=0.1,
        max=MOST_SECONDS,
        help="Seconds for a client to send a request.",
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
