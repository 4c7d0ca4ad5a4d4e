"""How bodies are read and answers written: in JSON, errors too, whatever mlx-lm would have sent."""

import json
import select
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from email.message import Message as Headers
from typing import cast

from mlx_lm.server import APIHandler

from ..errors import ApiError, refused
from ..serving import Serving
from .accounting import Account
from .listening import HttpListener

_LINGER = 2.0


class Wire(APIHandler):
    """mlx-lm's handler of one connection and one request, whose errors have OpenAI's form.

    Args:
        serving (Serving): What answers.

    Attributes:
        account (Account): What is known of the request.
        sent (bool): The head of the answer is out.
        query (dict[str, str]): What follows the address, by name.
        error_body (Callable): The JSON of an error, as clients of the address read it.
    """

    def __init__(self, serving: Serving, *args: object, system_fingerprint: str):
        self.serving, self.settings = serving, serving.settings
        self.account, self.sent = Account(), False
        self.query: dict[str, str] = {}
        self.error_body: Callable[[ApiError], dict[str, object]] = ApiError.body
        super().__init__(serving.generator, *args, system_fingerprint=system_fingerprint)

    raw_requestline: bytes  # which typeshed does not know

    def setup(self) -> None:
        # http.server sets it on the connection.
        self.timeout = self.settings.request_timeout  # type: ignore[misc]  # a class's, to typeshed
        super().setup()

    def read_body(self) -> bytes:
        """The body of the request.

        Raises:
            ApiError: If it is too large, of unknown length, or does not come in time.
        """
        given = self.headers.get("Content-Length")
        if given is None:
            raise ApiError(411, "The request needs a Content-Length.", code="length_required")
        limit = self.settings.max_body_bytes
        if len(given) > 12 or int(given) > limit:
            raise ApiError(413, f"The body is larger than {limit} bytes.", code="too_large")
        length = int(given)
        self._let_come()
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            body = b""
        if len(body) < length:
            raise ApiError(408, "The body did not come, or not in time.", code="timeout")
        cast(HttpListener, self.server).has_read(self.connection)
        return body

    def _let_come(self) -> None:
        """Say that the body may come, to a client that waits for that."""
        waits = self.headers.get("Expect", "").strip().lower() == "100-continue"
        if waits and self.request_version >= "HTTP/1.1":
            self.write_now(b"HTTP/1.1 100 Continue\r\n\r\n")

    def alive(self) -> bool:
        """Whether the client still waits."""
        poll = select.poll()
        try:
            poll.register(self.connection, select.POLLIN)
            return not poll.poll(0) or bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def begin_stream(self) -> None:
        """Send the head of an answer that comes as events."""
        self._set_stream_headers(200)
        self.end_headers()

    def write_now(self, data: bytes) -> None:
        """Send a part of an answer that has begun."""
        self.wfile.write(data)
        self.wfile.flush()

    def send_json(self, value: object, status: int = 200, **headers: str) -> None:
        """Answer with JSON."""
        self.send_bytes(json.dumps(value).encode(), "application/json", status, **headers)

    def send_bytes(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        """Answer with a body of this content type; with its head only, if that was asked for."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self._set_cors_headers()
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def tell(self, error: ApiError) -> None:
        """Send an error: as the response, or within the stream that has begun."""
        with suppress(OSError):
            if self.sent:
                self.wfile.write(f"data: {json.dumps(self.error_body(error))}\n\n".encode())
                return
            self._headers_buffer: list[bytes] = []  # http.server's: what mlx-lm had begun
            headers = {"WWW_Authenticate": "Bearer"} if error.status == 401 else {}
            if error.retry_after is not None:
                headers["Retry_After"] = str(error.retry_after)
            self.send_json(self.error_body(error), error.status, **headers)
            self._linger()

    def _linger(self) -> None:
        """Read on for a moment what the client is still sending, or it would not see the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER)
        end = time.monotonic() + _LINGER
        while time.monotonic() < end and self.connection.recv(1 << 16):
            pass

    def send_response(self, code: int, message: str | None = None) -> None:
        self.account.status = code
        super().send_response(code, message)

    def end_headers(self) -> None:
        self.sent = True
        super().end_headers()

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm calls this, and writes an error of its own form, where it refuses a request.
        if status_code >= 400:
            raise refused(status_code, sys.exc_info()[1])
        super()._set_completion_headers(status_code)

    def _set_cors_headers(self) -> None:
        super()._set_cors_headers()
        # mlx-lm allows *, which to a browser is all headers but this one.
        self.send_header("Access-Control-Allow-Headers", "Authorization")

    def parse_request(self) -> bool:
        if len(self.raw_requestline.split()) == 2:  # HTTP/0.9, whose answers have no status
            self.requestline = ""
            self.send_error(400)
            return False
        return super().parse_request()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # http.server's own refusals: unknown methods, malformed request lines.
        code = 405 if code == 501 else code
        self.request_version = "HTTP/1.0"  # an older one would get no status line
        self.command = getattr(self, "command", None) or "GET"
        self.headers = getattr(self, "headers", None) or Headers()
        self.tell(ApiError(code, f"This is no request that the server knows: {code}."))
        self.account.close(self.serving.metrics, self.command, 0.0)

    def version_string(self) -> str:
        return "deltamem-mlx"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold keys. ``Account`` writes the line."""
