"""One request: which address it is for, whether it may, what it asks, and mlx-lm's answer to it."""

import logging
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Concatenate, ParamSpec
from urllib.parse import parse_qsl, unquote

from mlx_lm.server import APIHandler

from .errors import ApiError
from .grammars.compiling import Grammar
from .http.access import authorize, check_head
from .http.front import FrontPage
from .http.management import Actions, Management
from .http.scores import scores
from .http.speaking import read_by_mlx_lm, served_request
from .http.usage import memory_usage
from .memories.memory import Memory
from .messages.routes import MessageRoutes
from .requests.bodies import parse
from .requests.completions import Completion, read_completion
from .responses.routes import ResponseRoutes

log = logging.getLogger(__name__)
_OPEN = "/health"
_CLIENT_CLOSED = 499  # for logs and metrics only
P = ParamSpec("P")


def _with_memory(
    answer: Callable[Concatenate[APIHandler, P], dict[str, object]],
) -> Callable[Concatenate["MemoryHandler", P], dict[str, object]]:
    """mlx-lm's answer, with what the turn made of the memory, and how likely its tokens were."""

    def method(self: "MemoryHandler", *args: P.args, **kwargs: P.kwargs) -> dict[str, object]:
        response = answer(self, *args, **kwargs)
        job = self.account.job
        response["object"] = self.object_type  # mlx-lm's differs where it says the usage
        usage, memory = response.get("usage"), memory_usage(job)
        if isinstance(usage, dict) and job is not None:
            # mlx-lm counts responses, and a token may have come in two.
            usage["completion_tokens"] = len(job.reply)
            usage["total_tokens"] = usage["prompt_tokens"] + len(job.reply)
        if isinstance(usage, dict) and memory is not None:
            usage["memory"] = memory
        choices = response.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            if job is not None and (job.args.logprobs or job.args.top_logprobs > 0):
                shown, job.shown = job.shown, []
                choice["logprobs"] = scores(shown, self.serving.generator.pair.tokenizer)
            message = choice.get("message", {"content": ""})
            if message["content"] is None and not message.get("tool_calls"):
                message["content"] = ""  # null is for a message that only calls tools
        return response

    return method


class MemoryHandler(Management, ResponseRoutes, MessageRoutes, FrontPage):
    """One connection, one request."""

    def _serve(self) -> None:
        began = time.perf_counter()
        try:
            check_head(self.headers)
            self._action()()
        except ApiError as error:
            self.tell(error)
        except (ConnectionError, TimeoutError):
            self.account.status = _CLIENT_CLOSED
        except Exception as error:
            log.error("request failed", extra={"error": type(error).__name__})
            self.tell(ApiError(500, "The server failed.", code="internal_error"))
        finally:
            self.account.close(self.serving.metrics, self.command, time.perf_counter() - began)
            if self.account.request is not None:
                self.account.request.release()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _action(self) -> Callable[[], None]:
        """What the address and the method ask for.

        Raises:
            ApiError: If there is no such thing, or this client may not ask for it.
        """
        self.path, _, query = self.path.partition("?")
        self.query = dict(parse_qsl(query))
        parts = self.path.removeprefix("/").split("/")
        try:
            parts = [unquote(part, errors="strict") for part in parts]
        except UnicodeDecodeError:
            raise ApiError(400, "The address is not UTF-8.", code="bad_address") from None
        actions = self._actions(parts)
        if self.path != _OPEN:
            authorize(self.headers, self.settings, needs_key=not self.is_page(parts))
        if not actions:
            raise ApiError(404, "There is nothing at this address.", code="unknown_address")
        action = actions.get("GET" if self.command == "HEAD" else self.command)
        if action is None:
            raise ApiError(405, f"This address takes {', '.join(actions)}.", code="bad_method")
        return action

    def _actions(self, parts: list[str]) -> Actions:
        """What to do, for an address; notes the route as logs and metrics name it."""
        match parts:
            case ["v1", "chat", "completions"] | ["chat", "completions"]:
                self.account.route = "/v1/chat/completions"
                return {"POST": partial(self._complete, chat=True)}
            case ["v1", "completions"]:
                self.account.route = "/v1/completions"
                return {"POST": partial(self._complete, chat=False)}
            case ["v1", "models", *name]:
                self.account.route = "/v1/models"
                return {"GET": partial(self._models, "/".join(name))}
            case [""] | ["openapi.json"] | ["page", *_]:
                return self.front_actions(parts)
            case ["health"]:
                self.account.route = "/health"
                return {"GET": self._health}
            case ["metrics"]:
                self.account.route = "/metrics"
                return {"GET": self._metrics}
            case ["v1", "responses", *rest]:
                return self.response_actions(rest)
            case ["v1", "messages", *rest]:
                return self.message_actions(rest)
            case ["v1", "conversations", *rest]:
                return self.conversation_actions(rest)
            case ["v1", "memories", *rest]:
                return self.memory_actions(rest)
        return {}

    def _complete(self, *, chat: bool) -> None:
        """Read what is asked, wait for the memory that it is for, and let mlx-lm answer."""
        serving, body = self.serving, parse(self.read_body())
        asked = read_completion(body, self.headers, self.settings, serving.vocabulary, chat=chat)
        serving.provider.check(asked.model)
        with serving.admitted():
            grammar = serving.generator.grammars.of(asked.shape)
            with serving.held(asked.memory) as memory:
                self._answer(asked, memory, grammar)

    def _answer(self, asked: Completion, memory: Memory | None, grammar: Grammar | None) -> None:
        chat = asked.messages is not None
        request = self.account.request = served_request(asked, memory, self.alive, grammar)
        self._tell_mlx_lm(asked, chat=chat)
        try:
            self.handle_completion(request, asked.stop)
        finally:
            self.serving.generator.settle(request)

    def _tell_mlx_lm(self, asked: Completion, *, chat: bool) -> None:
        """Set what mlx-lm's ``handle_completion`` reads of its handler."""
        vars(self).update(read_by_mlx_lm(asked))
        self.request_id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4()}"
        piece = "chat.completion.chunk" if asked.stream else "chat.completion"
        self.object_type = piece if chat else "text_completion"

    generate_response = _with_memory(APIHandler.generate_response)
    completion_usage_response = _with_memory(APIHandler.completion_usage_response)

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

    def _health(self) -> None:
        well = self.serving.generator.is_healthy
        self.send_json({"status": "ok" if well else "unavailable"}, 200 if well else 503)

    def _metrics(self) -> None:
        self.send_bytes(self.serving.metrics_text().encode(), "text/plain; version=0.0.4")
