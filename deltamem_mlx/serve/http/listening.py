"""Listening: a thread for each connection, not too many, and none that waits for ever."""

import errno
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer

from ..settings import ServeSettings, addresses

log = logging.getLogger(__name__)
_BUSY = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
_WHY = {
    errno.EADDRINUSE: "another program listens there. Choose another --port, or 0 for a free one.",
    errno.EADDRNOTAVAIL: "this machine has no such address. Choose another --host.",
    errno.EACCES: "this user may not listen there. Choose a --port above 1023.",
}
Connection = socket.socket | tuple[bytes, socket.socket]


class HttpListener(ThreadingHTTPServer):
    """Has the address from the beginning, and takes connections from ``serve_forever`` on.

    Args:
        settings (ServeSettings): Where to listen, and limits.
        handler (Callable): Makes what handles a connection.

    Raises:
        SettingsError: If the host is not known.
        OSError: If the address cannot be had; says why.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self, settings: ServeSettings, handler: Callable[..., socketserver.BaseRequestHandler]
    ):
        self._limit, self._patience = settings.max_connections, settings.request_timeout
        self._mutex = threading.Lock()
        self._open: set[Connection] = set()
        self._reading: dict[Connection, float] = {}  # until when its request has to be here
        self.address_family, host = addresses(settings)[0]
        try:
            super().__init__((host, settings.port), handler)
        except OSError as error:
            why = _WHY.get(error.errno or 0, f"{error.strerror}.")
            where = f"--host {settings.host} --port {settings.port}"
            raise OSError(f"{where}: {why}") from None

    @property
    def url(self) -> str:
        """Its address."""
        host = f"[{self.server_name}]" if ":" in self.server_name else self.server_name
        return f"http://{host}:{self.server_port}"

    def server_bind(self) -> None:
        # HTTPServer's asks the name service who we are, which may take its time.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Connection, client_address: object) -> None:
        with self._mutex:
            full = len(self._open) >= self._limit
            if not full:
                self._open.add(request)
                self._reading[request] = time.monotonic() + self._patience
        if not full:
            super().process_request(request, client_address)
            return
        if isinstance(request, socket.socket):
            request.settimeout(1.0)
            with suppress(OSError):
                request.sendall(_BUSY)
        self.shutdown_request(request)

    def shutdown_request(self, request: Connection) -> None:
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
                if isinstance(connection, socket.socket):
                    connection.shutdown(socket.SHUT_RD)

    def handle_error(self, request: object, client_address: object) -> None:
        log.info("connection lost")
