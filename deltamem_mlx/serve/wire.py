"""How bodies are read and answers written: in JSON, errors too, whatever mlx-lm would have sent."""

import json
import socket
import sys
import time
from contextlib import suppress

from mlx_lm.server import APIHandler

from .errors import ApiError, refused

_LINGER = 2.0


class Wire(APIHandler):
    """mlx-lm's handler, whose errors have OpenAI's form.

    Attributes:
        serving (Serving): What answers; set by the subclass, as is ``settings``.
        status (int): That was sent; 0: none.
        sent (bool): The head of the answer is out.
    """

    status, sent = 0, False

    def read_body(self) -> bytes:
        """The body of the request.

        Raises:
            ApiError: If it is too large, of unknown length, or does not come in time.
        """
        length = self.headers.get("Content-Length")
        if length is None or self.headers.get("Transfer-Encoding"):
            raise ApiError(411, "The request needs a Content-Length.", code="length_required")
        if not (length.isascii() and length.isdigit()):
            raise ApiError(400, "Content-Length is not a number.", code="bad_length")
        if len(length) > 12 or int(length) > self.settings.max_body_bytes:
            limit = self.settings.max_body_bytes
            raise ApiError(413, f"The body is larger than {limit} bytes.", code="too_large")
        try:
            body = self.rfile.read(int(length))
        except TimeoutError:
            body = b""
        if len(body) < int(length):
            raise ApiError(408, "The body did not come, or not in time.", code="timeout")
        self.serving.http.has_read(self.connection)
        return body

    def send_json(self, value: object, status: int = 200, **headers: str) -> None:
        """Answer with JSON."""
        self.send_bytes(json.dumps(value).encode(), "application/json", status, **headers)

    def send_bytes(self, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
        """Answer with a body of this content type."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self._set_cors_headers()
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def tell(self, error: ApiError) -> None:
        """Send an error: as the response, or within the stream that has begun."""
        with suppress(OSError):
            if self.sent:
                self.wfile.write(f"data: {json.dumps(error.body())}\n\n".encode())
                return
            self._headers_buffer = []
            headers = {"WWW_Authenticate": "Bearer"} if error.status == 401 else {}
            if error.retry_after is not None:
                headers["Retry_After"] = str(error.retry_after)
            self.send_json(error.body(), error.status, **headers)
            self._linger()

    def _linger(self) -> None:
        """Read on for a moment what the client is still sending, or it would not see the answer."""
        self.connection.shutdown(socket.SHUT_WR)
        self.connection.settimeout(_LINGER)
        end = time.monotonic() + _LINGER
        while time.monotonic() < end and self.connection.recv(1 << 16):
            pass

    def send_response(self, code: int, message: str | None = None) -> None:
        self.status = code
        super().send_response(code, message)

    def end_headers(self) -> None:
        self.sent = True
        super().end_headers()

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm calls this, and writes an error of its own form, where it refuses a request.
        if status_code >= 400:
            raise refused(status_code, sys.exc_info()[1])
        super()._set_completion_headers(status_code)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        # http.server's own refusals: unknown methods, malformed request lines.
        code = 405 if code == 501 else code
        self.request_version = "HTTP/1.0"  # an older one would get no status line
        self.command = getattr(self, "command", None) or "GET"
        self.headers = getattr(self, "headers", None) or {}
        self.tell(ApiError(code, f"This is no request that the server knows: {code}."))
        self.serving.account(self, 0.0)

    def version_string(self) -> str:
        return "deltamem-mlx"

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: addresses hold keys. `Serving.account` writes the line."""
