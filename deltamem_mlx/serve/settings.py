"""How a server is run: limits, defaults and where memories are kept."""

import os
import re
import socket
from argparse import Namespace
from dataclasses import dataclass, field
from pathlib import Path

from ..files import expanded
from ..problems import shortened

MOST_SECONDS = 86_400  # to wait: locks and sockets take no number that is much larger
_HEADER = re.compile(r"[0-9A-Za-z!#$%&'*+.^_`|~-]{1,128}")
# The same in all chats of a client, or another in every request.
_NO_NAMES = {
    "accept", "accept-encoding", "accept-language", "authorization", "connection",
    "content-length", "content-type", "cookie", "date", "host", "origin", "referer",
    "transfer-encoding", "user-agent", "x-api-key",
}  # fmt: skip


class SettingsError(ValueError):
    """A setting that a server cannot be run with; says which option."""


@dataclass(frozen=True)
class ServeSettings:
    """Settings of a server; sizes in bytes, times in seconds.

    Attributes:
        host, port: Where to listen; port 0 picks a free one.
        api_key (str): Expected as ``Authorization: Bearer``; None: anyone who can connect.
        insecure (bool): Let others than this machine connect without a key.
        allowed_origins (tuple[str, ...]): Web pages whose scripts may call; ``*``: all.
        allowed_hosts (tuple[str, ...]): Names that it answers under without a key, beside those of
          this machine and ``host``; ``*``: any.
        memory_dir (Path): Where memory files lie; None: in RAM only.
        named (bool): Memory files go by the memories' names, as a user's own do; else by hashes.
        context_dir (Path): Where the contexts of memories lie; None: in RAM only.
        context_bytes (int): Disk for them.
        memory_bytes (int): RAM for memories and their contexts.
        max_context (int): Tokens in the context of one memory; then the oldest turns leave it.
        undo_turns (int): Turns of each memory that can be taken back.
        one_chat (bool): A key is one chat, whose requests have all of it in them.
        session_headers (tuple[str, ...]): Headers that name a memory, beside the server's own.
        task_headers (tuple[str, ...]): Headers that name a client's task beside the conversation.
        wait (float): How long a request waits for another of the same memory.
        max_queue (int): Requests waiting or running; more are refused.
        max_connections (int): Open connections; more are closed.
        max_body_bytes (int): Largest request body.
        max_prompt_tokens, max_tokens_limit (int): Largest prompt, longest answer.
        request_timeout (float): Time for a client to send its request, or to take what is sent.
        grace (float): Time for running answers at shutdown.
        max_tokens, temp, top_p, top_k, min_p: Defaults of requests.
        chat_template_args (dict): Defaults of the chat template's settings.
        num_draft_tokens (int): How far a draft model guesses ahead.
        decode_concurrency, prompt_concurrency, prefill_step_size: Of mlx-lm's batching.
        prompt_cache_size, prompt_cache_bytes: Of mlx-lm's cache for requests without a memory.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    api_key: str | None = None
    insecure: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    memory_dir: Path | None = None
    named: bool = False
    context_dir: Path | None = None
    context_bytes: int = 8 << 30
    memory_bytes: int = 1 << 30
    max_context: int | None = 8192
    undo_turns: int = 64
    one_chat: bool = False
    session_headers: tuple[str, ...] = ()
    task_headers: tuple[str, ...] = ()
    wait: float = 30.0
    max_queue: int = 256
    max_connections: int = 512
    max_body_bytes: int = 4 << 20
    max_prompt_tokens: int = 32768
    max_tokens_limit: int = 8192
    request_timeout: float = 30.0
    grace: float = 10.0
    max_tokens: int = 512
    temp: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    chat_template_args: dict[str, object] = field(default_factory=dict)
    num_draft_tokens: int = 3
    decode_concurrency: int = 32
    prompt_concurrency: int = 8
    prefill_step_size: int = 2048
    prompt_cache_size: int = 10
    prompt_cache_bytes: int | None = None

    def __post_init__(self) -> None:
        for names, option, what in (
            (
                self.session_headers,
                "session",
                "which chat they are in, such as X-OpenWebUI-Chat-Id",
            ),
            (self.task_headers, "task", "which task a request is, such as X-OpenWebUI-Task"),
        ):
            for name in names:
                if not _HEADER.fullmatch(name) or name.lower() in _NO_NAMES:
                    raise SettingsError(
                        f"--{option}-header {shortened(name)}: expected the name of a header in "
                        f"which clients say {what}."
                    )
        for option, least in (("wait", 0.0), ("request_timeout", 0.1)):
            if not least <= getattr(self, option) <= MOST_SECONDS:
                raise SettingsError(
                    f"--{option.replace('_', '-')} {getattr(self, option)}: expected {least:g} to "
                    f"{MOST_SECONDS} seconds."
                )
        self._check_folders()
        if self.api_key is None:
            return
        # Space around it, such as the newline at the end of a secret's file, is in no header.
        key = self.api_key.strip()
        if not key or not key.isprintable():
            raise SettingsError(
                "--api-key: expected text that a header can hold, without line breaks. It may not "
                "be empty: leave the option and DELTAMEM_API_KEY out for no key."
            )
        object.__setattr__(self, "api_key", key)

    def _check_folders(self) -> None:
        for option, folder in (("memory", self.memory_dir), ("context", self.context_dir)):
            if folder is not None and os.path.isfile(_place(folder)):
                raise SettingsError(f"--{option}-dir {folder}: is a file; expected a folder.")
        if self.context_dir is None:
            return
        if self.memory_dir is None:
            raise SettingsError(
                "--context-dir: without --memory-dir the memories that contexts belong to do not "
                "outlive the server. Give both."
            )
        if _place(self.context_dir) == _place(self.memory_dir):
            raise SettingsError("--context-dir: expected another folder than --memory-dir.")

    def for_mlx_lm(self, model: str) -> Namespace:
        """The same as mlx-lm's server has its command line."""
        return Namespace(
            model=model,
            adapter_path=None,
            draft_model=None,
            num_draft_tokens=0,
            trust_remote_code=False,
            chat_template="",
            use_default_chat_template=False,
            pipeline=False,
            kv_bits=None,
            allowed_origins=list(self.allowed_origins),
            **{name: getattr(self, name) for name in _SAME},
        )


def _place(folder: Path) -> str:
    return os.path.realpath(expanded(folder))


_SAME = (
    "max_tokens",
    "temp",
    "top_p",
    "top_k",
    "min_p",
    "chat_template_args",
    "decode_concurrency",
    "prompt_concurrency",
    "prefill_step_size",
    "prompt_cache_size",
    "prompt_cache_bytes",
)
_LOOPBACK = ("127.", "::1")


def addresses(settings: ServeSettings) -> list[tuple[socket.AddressFamily, str]]:
    """The kinds and addresses that ``host`` means.

    Raises:
        SettingsError: If it means none.
    """
    try:
        if not settings.host:
            raise OSError("no name")
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise SettingsError(
            f"--host {shortened(settings.host)}: expected a name or an address of this machine, "
            "such as 127.0.0.1."
        ) from None
    return [(family, str(address[0])) for family, _, _, _, address in found]


def check_exposure(settings: ServeSettings) -> None:
    """Raises SettingsError if others than this machine could connect without a key."""
    found = addresses(settings)
    if settings.api_key or settings.insecure:
        return
    if not all(address.startswith(_LOOPBACK) for _, address in found):
        raise SettingsError(
            f"--host {settings.host}: others than this machine could connect. Set --api-key or "
            "DELTAMEM_API_KEY, or accept that with --insecure."
        )
