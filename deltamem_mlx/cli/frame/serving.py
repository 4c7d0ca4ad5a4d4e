"""A server in this process, from its start to the signal that ends it."""

import logging
import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.errors import UsageError

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.serve.settings import ServeSettings


def served_name(model: str | None, loaded: "nn.Module") -> str:
    """What clients call a model that was asked for in these words."""
    from deltamem_mlx.adapters.loading import base_model_of

    return str(model or base_model_of(loaded)["name"])


def serve_until_ended(
    model: "nn.Module",
    tokenizer: "TokenizerWrapper",
    name: str,
    draft: "nn.Module | None",
    settings: "ServeSettings",
    log_format: str = "text",
    *,
    requests: bool = True,
    begun: Callable[[str], None] = output.result,
) -> None:
    """Answer until a signal comes.

    Args:
        requests (bool): Write a line of each to the log.
        begun (Callable[[str], None]): Called with the address, once it answers.

    Others as of ``Server``.
    """
    from deltamem_mlx.serve.log import set_up
    from deltamem_mlx.serve.server import Server
    from deltamem_mlx.serve.settings import SettingsError

    level = logging.WARNING if output.settings.quiet or not requests else logging.INFO
    set_up(level, as_json=log_format == "json")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    try:
        server = Server(model, tokenizer, name, settings, draft)
    except SettingsError as error:
        raise UsageError(str(error)) from error
    with server:
        begun(server.url)
        while not ended.wait(1.0):
            if not server.generator.is_healthy:
                raise RuntimeError(
                    "the thread that owns the model ended; the log says by what error"
                )
