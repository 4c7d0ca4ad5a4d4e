"""A server: a `Serving` behind an address."""

import logging
import threading
from functools import partial
from typing import Self

import mlx.nn as nn
from mlx_lm.server import get_system_fingerprint
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .handler import MemoryHandler
from .http.listening import HttpListener
from .serving import Serving
from .settings import ServeSettings, check_exposure

log = logging.getLogger(__name__)


class Server(Serving):
    """A server that does not listen before ``start``. Arguments as of ``Serving``.

    Raises:
        ValueError: As ``Serving``, or if others could connect without a key.
        OSError: As ``Serving``, or if the address is taken.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        name: str,
        settings: ServeSettings,
        draft: nn.Module | None = None,
    ):
        check_exposure(settings)
        handler = partial(MemoryHandler, self, system_fingerprint=get_system_fingerprint())
        self.http = HttpListener(settings, handler)
        try:
            super().__init__(model, tokenizer, name, settings, draft)
        except BaseException:
            self.http.server_close()
            raise

    @property
    def url(self) -> str:
        """The address."""
        return self.http.url

    def start(self) -> None:
        """Begin to listen and answer, in threads of its own."""
        # As often as this it looks for slow clients, and whether it is to stop.
        threading.Thread(target=self.http.serve_forever, args=(0.1,), daemon=True).start()
        log.info("ready", extra={"address": self.url})

    def stop(self) -> None:
        """Take no more connections, let running answers end for a while, then end."""
        self.http.shutdown()
        self.http.server_close()
        super().stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
