"""mlx-lm's request handler with memories: who may ask, what they may ask, and what it is called."""

import hmac
import io
import json
import logging
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from urllib.parse import unquote

from mlx_lm.server import CompletionRequest

from .bodies import check_completion, check_key, memory_options, parse, utf8
from .errors import ApiError
from .job import ServedRequest
from .management import Management
from .wire import Wire

if TYPE_CHECKING:
    from .server import Serving

log = logging.getLogger(__name__)
_OPEN = ("/health",)
_CLIENT_CLOSED = 499  # for logs and metrics only


class MemoryHandler(Management, Wire):
    """One connection, one request.

    Args:
        serving (Serving): What answers.
    """

    def __init__(self, serving: "Serving", *args: object, **kwargs: object):
        self.serving, self.settings = serving, serving.settings
        self.timeout = serving.settings.request_timeout
        self.route = "unknown"
        self.request_of: ServedRequest | None = None
        self.memory = self.options = None
        super().__init__(serving.generator, *args, **kwargs)

    def do_GET(self) -> None:
        """Any of the routes."""
        self._serve()

    do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        began = time.perf_counter()
        try:
            self._checked_action()()
        except ApiError as error:
            self.tell(error)
        except (ConnectionError, TimeoutError):
            self.status = _CLIENT_CLOSED
        except Exception as error:
            log.error("request failed", extra={"error": type(error).__name__})
            self.tell(ApiError(500, "The server failed.", code="internal_error"))
        finally:
            self.serving.account(self, time.perf_counter() - began)
            if self.request_of is not None:
                self.request_of.release()
                self.request_of = None

    def _checked_action(self) -> Callable[[], None]:
        path, _, _ = self.path.partition("?")
        self.path = path
        try:
            parts = [unquote(part, errors="strict") for part in path.removeprefix("/").split("/")]
        except UnicodeDecodeError:
            raise ApiError(400, "The address is not UTF-8.", code="bad_address") from None
        found = {self.command: None} | self._actions(parts)
        self._authorize()
        if found[self.command] is None:
            known = [method for method, action in found.items() if action]
            if known:
                raise ApiError(405, f"This address takes {', '.join(known)}.", code="bad_method")
            raise ApiError(404, "There is nothing at this address.", code="unknown_address")
        return found[self.command]

    def _actions(self, parts: list[str]) -> dict[str, Callable[[], None]]:
        """Method → what to do, for an address; sets the route as logs and metrics name it."""
        match parts:
            case ["v1", "chat", "completions"] | ["chat", "completions"]:
                self.route = "/v1/chat/completions"
                return {"POST": lambda: self._complete(chat=True)}
            case ["v1", "completions"]:
                self.route = "/v1/completions"
                return {"POST": lambda: self._complete(chat=False)}
            case ["v1", "models", *name]:
                self.route = "/v1/models"
                return {"GET": lambda: self._models("/".join(name))}
            case ["health"]:
                self.route = "/health"
                return {"GET": self.handle_health_check}
            case ["metrics"]:
                self.route = "/metrics"
                return {"GET": self._metrics}
            case ["v1", "memories", *rest]:
                return self.memory_actions(rest)
        return {}

    def _authorize(self) -> None:
        """Raises ApiError unless the request has the key, and comes from where it may."""
        if self.path in _OPEN:
            return
        origin = self.headers.get("Origin")
        allowed = self.settings.allowed_origins
        if origin is not None and "*" not in allowed and origin not in allowed:
            raise ApiError(
                403,
                "Web pages of this origin may not call: see --allowed-origins.",
                code="bad_origin",
            )
        if self.settings.api_key is None:
            return
        scheme, _, given = utf8(self.headers.get("Authorization", "")).partition(" ")
        key = self.settings.api_key.encode()
        same = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), key)
        if scheme.lower() != "bearer" or not same:
            raise ApiError(
                401,
                "The API key is missing or wrong. Send it as Authorization: Bearer KEY.",
                code="invalid_api_key",
            )

    def _complete(self, *, chat: bool) -> None:
        """Check what is asked, and let mlx-lm answer it."""
        body = parse(self.read_body())
        check_completion(body, self.settings, chat=chat)
        model = body.get("model", "default_model")
        if not isinstance(model, str):
            raise ApiError(400, "model: expected text.", param="model", code="invalid_value")
        self.serving.provider.check(model)
        self.options = memory_options(body, self.headers)
        if self.options and not chat:
            raise ApiError(
                400, "A memory takes messages: use /v1/chat/completions.", param="memory"
            )
        with self.serving.admitted(), self._held(), self._as_body(body):
            super().do_POST()

    def _held(self) -> object:
        if self.options is None:
            return nullcontext()
        return self._holding()

    @contextmanager
    def _holding(self) -> Iterator[None]:
        memories, options = self.serving.memories, self.options
        with memories.hold(options.session, load=not options.reset) as self.memory:
            yield

    @contextmanager
    def _as_body(self, body: dict[str, object]) -> Iterator[None]:
        """Give mlx-lm the body to read that was checked."""
        raw, connection = json.dumps(body).encode(), self.rfile
        self.headers.replace_header("Content-Length", str(len(raw)))
        self.rfile = io.BytesIO(raw)
        try:
            yield
        finally:
            self.rfile = connection

    def handle_chat_completions(self) -> CompletionRequest:
        return self._served(super().handle_chat_completions())

    def handle_text_completions(self) -> CompletionRequest:
        return self._served(super().handle_text_completions())

    def _served(self, request: CompletionRequest) -> ServedRequest:
        self.request_of = ServedRequest(
            **vars(request),
            options=self.options,
            memory=self.memory,
            alive=self._alive,
            stream=self.stream,
        )
        return self.request_of

    def handle_completion(self, request: ServedRequest, stop_words: list[str]) -> None:
        try:
            super().handle_completion(request, stop_words)
        finally:
            self.response_generator.settle(request)

    def _alive(self) -> bool:
        """Whether the client still waits."""
        poll = select.poll()
        try:
            poll.register(self.connection, select.POLLIN)
            return not poll.poll(0) or bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def generate_response(self, *args: object, **kwargs: object) -> dict:
        return self._with_usage(super().generate_response(*args, **kwargs))

    def completion_usage_response(self, *args: object, **kwargs: object) -> dict:
        return self._with_usage(super().completion_usage_response(*args, **kwargs))

    def _with_usage(self, response: dict) -> dict:
        job = self.request_of.job
        if "usage" in response and job.kept is not None:
            response["usage"]["memory"] = {
                "session": self.options.session,
                "tokens_written": job.kept.written,
                "total_tokens_written": job.kept.saved.tokens_written[0],
                "messages_known": job.kept.known,
                "turns": job.kept.history.turns,
                "bytes": sum(state.nbytes for state in job.kept.saved.states.values()),
                "context_tokens": len(job.kept.talk.context.tokens),
            }
        return response

    def _models(self, name: str) -> None:
        provider = self.serving.provider
        model = {
            "id": provider.name,
            "object": "model",
            "created": self.serving.started,
            "owned_by": "deltamem-mlx",
        }
        if not name:
            self.send_json({"object": "list", "data": [model]})
            return
        provider.check(name)
        self.send_json(model)

    def handle_health_check(self) -> None:
        well = self.response_generator.is_healthy
        self.send_json({"status": "ok" if well else "unavailable"}, 200 if well else 503)

    def _metrics(self) -> None:
        self.send_bytes(self.serving.metrics_text().encode(), "text/plain; version=0.0.4")

    def key(self, text: str) -> str:
        """A part of an address as the key of a memory."""
        return check_key(text, "the key in the address")
