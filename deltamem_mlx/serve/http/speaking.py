"""mlx-lm's own loop over an answer, for APIs that say it in other words than its chat route."""

import sys
from collections.abc import Callable
from typing import NamedTuple, Protocol

from mlx_lm.server import APIHandler, ResponseGenerator

from ..batching.generator import MemoryGenerator
from ..errors import refused
from ..grammars.compiling import Grammar
from ..memories.memory import Memory
from ..requests.completions import Completion
from ..turns.job import ServedRequest


class Piece(NamedTuple):
    """A piece of an answer.

    Attributes:
        text (str): That is said.
        reasoning (str): That was thought before.
        calls (list[dict]): Of tools, complete: ``id`` and ``function`` with ``name`` and
          ``arguments``.
        finish (str): ``stop``, ``length`` or ``tool_calls`` with the last piece.
    """

    text: str
    reasoning: str = ""
    calls: list[dict] | None = None
    finish: str | None = None


class Used(NamedTuple):
    """Tokens of the prompt, of the answer, and of the prompt those that had been fed before."""

    prompt: int
    generated: int
    cached: int


class AnswerListener(Protocol):
    """What an answer is said to."""

    def begin(self) -> None:
        """The request is accepted."""

    def wait(self) -> None:
        """A long prompt is being fed."""

    def hear(self, piece: Piece) -> None:
        """A piece of the answer."""

    def end(self, used: Used) -> None:
        """It is complete, and what it made of a memory is kept."""


def served_request(
    asked: Completion,
    memory: Memory | None,
    alive: Callable[[], bool],
    grammar: Grammar | None = None,
    *,
    store: bool = True,
) -> ServedRequest:
    """What is asked, as the generation thread takes it."""
    chat = asked.messages is not None
    return ServedRequest(
        "chat" if chat else "text",
        asked.prompt,
        asked.messages or [],
        asked.tools,
        asked.role_mapping,
        options=asked.memory,
        memory=memory,
        alive=alive,
        stream=asked.stream,
        store=store,
        grammar=grammar,
    )


def read_by_mlx_lm(asked: Completion) -> dict[str, object]:
    """What mlx-lm's ``handle_completion`` reads of its handler, by its names."""
    return vars(asked.parameters) | {
        "requested_model": asked.model,
        "requested_draft_model": "default_model",
        "adapter": None,
        "num_draft_tokens": 0,
        "chat_template_kwargs": asked.template_kwargs,
        "stream": asked.stream,
        "stream_options": {"include_usage": asked.include_usage},
    }


def speak(
    generator: MemoryGenerator, request: ServedRequest, asked: Completion, listener: AnswerListener
) -> None:
    """Answer a request, piece by piece; all of them come at the end where it does not stream.

    Raises:
        ApiError: If it cannot be answered.
    """
    try:
        _Speaker(generator, request, asked, listener).handle_completion(request, asked.stop)
    finally:
        generator.settle(request)


class _Speaker(APIHandler):
    """mlx-lm's handler without a connection: what it would send goes to a listener."""

    def __init__(
        self,
        generator: ResponseGenerator,
        request: ServedRequest,
        asked: Completion,
        listener: AnswerListener,
    ):
        self.response_generator, self._request, self._listener = generator, request, listener
        vars(self).update(read_by_mlx_lm(asked))
        self.stream, self.stream_options = True, {"include_usage": True}
        vars(self)["wfile"] = self

    def write(self, data: bytes) -> None:
        """What is not heard otherwise: mlx-lm's signs of life."""
        if data.startswith(b":"):
            self._listener.wait()

    def flush(self) -> None:
        """Nothing waits."""

    def end_headers(self) -> None:
        """There are none."""

    def _set_stream_headers(self, status_code: int = 200) -> None:
        self._listener.begin()

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # mlx-lm calls this where it refuses a request.
        raise refused(status_code, sys.exc_info()[1])

    def generate_response(
        self, text: str, finish_reason: str | None, *args: object, **kwargs: object
    ) -> dict[str, object]:
        """A piece of the answer, which the listener hears."""
        calls = kwargs.get("tool_calls")
        self._listener.hear(
            Piece(
                text,
                str(kwargs.get("reasoning_text") or ""),
                calls if isinstance(calls, list) else None,
                finish_reason,
            )
        )
        return {}

    def completion_usage_response(
        self,
        prompt_token_count: int | None = None,
        completion_token_count: int | None = None,
        prompt_cache_count: int | None = None,
    ) -> dict[str, object]:
        """The end of the answer, which the listener hears."""
        cached, job = max(prompt_cache_count or 0, 0), self._request.job
        # mlx-lm counts responses, and a token may have come in two.
        generated = len(job.reply) if job is not None else completion_token_count
        self._listener.end(Used(prompt_token_count or 0, generated or 0, cached))
        return {}
