"""A server: the model, its memories and mlx-lm's batching behind an address."""

import logging
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http.server import ThreadingHTTPServer

import mlx.nn as nn
from mlx_lm.server import get_system_fingerprint
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .errors import ApiError
from .folder import MemoryFolder
from .generator import MemoryGenerator
from .handler import MemoryHandler
from .memories import Memories
from .metrics import Metrics
from .provider import PairProvider, ServedPair
from .settings import ServeSettings, check_exposure

log = logging.getLogger(__name__)
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")


class Http(ThreadingHTTPServer):
    """A thread for each connection, no more than so many, and none that waits for ever.

    Args:
        serving (Serving): What answers.
        settings (ServeSettings): Where to listen, and limits.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, serving: "Serving", settings: ServeSettings):
        self._limit, self._patience = settings.max_connections, settings.request_timeout
        self._mutex = threading.Lock()
        self._open: set[socket.socket] = set()
        self._reading: dict[socket.socket, float] = {}  # until when its request has to be here
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        self.address_family, *_, address = found[0]
        handler = partial(MemoryHandler, serving, system_fingerprint=get_system_fingerprint())
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer's asks the name service who we are, which may take its time.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    def process_request(self, request: socket.socket, client_address: object) -> None:
        with self._mutex:
            full = len(self._open) >= self._limit
            if not full:
                self._open.add(request)
                self._reading[request] = time.monotonic() + self._patience
        if full:
            request.settimeout(1.0)
            with suppress(OSError):
                request.sendall(_BUSY)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        with self._mutex:
            self._open.discard(request)
            self._reading.pop(request, None)
        super().shutdown_request(request)

    def has_read(self, connection: socket.socket) -> None:
        """The request is here."""
        with self._mutex:
            self._reading.pop(connection, None)

    def service_actions(self) -> None:
        """Stop reading from clients that send too slowly; their handlers see the end."""
        now = time.monotonic()
        with self._mutex:
            late = [c for c, until in self._reading.items() if until < now]
            for connection in late:
                del self._reading[connection]
        for connection in late:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request: object, client_address: object) -> None:
        log.info("connection lost")


class Serving:
    """A server that has not begun to listen before ``start``.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer.
        name (str): What the model is called: a folder or a repository.
        settings (ServeSettings): How to run.

    Raises:
        ValueError: If the model has no adapter, or others could connect without a key.
        OSError: If the address is taken or the folder of memories cannot be made.
    """

    def __init__(
        self, model: nn.Module, tokenizer: TokenizerWrapper, name: str, settings: ServeSettings
    ):
        check_exposure(settings)
        pair = ServedPair.of(model, tokenizer, settings.chat_template_args)
        self.settings, self.metrics = settings, Metrics()
        self.provider = PairProvider(model, tokenizer, name, settings)
        if not self.provider.is_batchable:
            raise ValueError(
                f"{name}: mlx-lm cannot batch this model's prompt cache, and the server needs that."
            )
        folder = MemoryFolder(settings.memory_dir, pair)
        self.memories = Memories(folder, settings.memory_bytes, settings.wait)
        self.started = int(time.time())
        self._mutex = threading.Lock()
        self._busy = 0
        self.http = Http(self, settings)
        self.generator = MemoryGenerator(self.provider, pair, self.memories, settings, self.metrics)

    @property
    def url(self) -> str:
        """The address, once it listens."""
        host, port = self.http.server_address[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def start(self) -> None:
        """Begin to answer, in threads of its own."""
        # As often as this it looks for slow clients, and whether it is to stop.
        threading.Thread(target=self.http.serve_forever, args=(0.1,), daemon=True).start()
        log.info("ready", extra={"address": self.url})

    def stop(self) -> None:
        """Take no more connections, let running answers end for a while, then end."""
        self.http.shutdown()
        self.http.server_close()
        end = time.monotonic() + self.settings.grace
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)
        self.generator.stop_and_join()
        end = time.monotonic() + 5.0
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)  # threads that tell their clients, or save what was complete
        self.memories.close()
        log.info("stopped")

    def __enter__(self) -> "Serving":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One of the requests that wait or run; raises ApiError if there are too many."""
        with self._mutex:
            if self._busy >= self.settings.max_queue:
                raise ApiError(
                    429,
                    f"{self._busy} requests are waiting or running already. Try again later.",
                    code="queue_full",
                    retry_after=1,
                )
            self._busy += 1
        try:
            yield
        finally:
            with self._mutex:
                self._busy -= 1

    def account(self, handler: MemoryHandler, seconds: float) -> None:
        """Count and log a request."""
        metrics = self.metrics
        # Each method has counters of its own: clients may not make up more of them.
        method = handler.command if handler.command in _METHODS else "other"
        labels = {"route": handler.route, "method": method, "status": handler.status}
        metrics.requests.add(**labels)
        extra = labels | {"seconds": round(seconds, 4)}
        job = handler.request_of.job if handler.request_of else None
        if handler.memory is not None:
            extra["memory"] = handler.memory.id[:12]
        if job is not None and job.ctx is not None:
            metrics.seconds.observe(seconds)
            if job.first is not None:
                metrics.first.observe(job.first - job.began)
            metrics.prompt_tokens.add(len(job.ctx.prompt))
            metrics.cached_tokens.add(job.ctx.prompt_cache_count)
            metrics.generated_tokens.add(len(job.reply))
            extra |= {"prompt_tokens": len(job.ctx.prompt), "generated_tokens": len(job.reply)}
        if job is not None and handler.memory is not None:
            metrics.turns.add(outcome="kept" if job.kept else "dropped")
            if job.kept:
                metrics.written_tokens.add(job.kept.written)
                extra["tokens_written"] = job.kept.written
        log.info("request", extra=extra)

    def metrics_text(self) -> str:
        """For ``/metrics``."""
        totals = self.memories.totals()
        gauges = {
            "requests_running": self._busy,
            "memories_in_ram": totals["memories"],
            "contexts_in_ram": totals["contexts"],
            "memory_bytes_in_ram": totals["bytes"],
            "contexts_evicted": self.memories.evicted["context"],
            "memories_evicted": self.memories.evicted["memory"],
            "prompt_cache_bytes": self.generator.prompt_cache.nbytes,
        }
        return self.metrics.text(gauges)
