"""How a message reaches its client: as events while it comes to be, or whole."""

import json
import uuid

from ..errors import ApiError
from ..http.speaking import Piece, Used
from ..http.usage import memory_usage
from ..http.wire import Wire
from ..requests.completions import Completion
from ..turns.job import ServedRequest
from .events import Event, MessageEvents

_REASONS = {"length": "max_tokens", "tool_calls": "tool_use"}


class MessageListener:
    """Hears an answer and sends it.

    Args:
        wire (Wire): The connection.
        asked (Completion): What was asked.
        request (ServedRequest): The same, as it is answered.
    """

    def __init__(self, wire: Wire, asked: Completion, request: ServedRequest):
        self._wire, self._asked, self._request = wire, asked, request
        self._finish = "stop"
        send = self._send if asked.stream else _ignore
        self._events = MessageEvents(f"msg_{uuid.uuid4().hex}", asked.model, send)

    def begin(self) -> None:
        """The request is accepted."""
        if self._asked.stream:
            self._wire.begin_stream()
        job = self._request.job
        ctx = job.ctx if job is not None else None
        fed = (len(ctx.prompt), max(ctx.prompt_cache_count, 0)) if ctx is not None else (0, 0)
        self._events.begin(Used(fed[0], 0, fed[1]))

    def wait(self) -> None:
        """A long prompt is being fed."""
        if self._asked.stream:
            self._send({"type": "ping"})

    def hear(self, piece: Piece) -> None:
        """A piece of the answer."""
        self._finish = piece.finish or self._finish
        self._events.hear(piece)

    def end(self, used: Used) -> None:
        """It is complete."""
        sequence = self._stop_sequence() if self._finish == "stop" else None
        reason = "end_turn" if sequence is None else "stop_sequence"
        reason = _REASONS.get(self._finish, reason)
        self._events.complete(reason, sequence, used, memory_usage(self._request.job))
        if not self._asked.stream:
            self._wire.send_json(self._events.message)

    def fail(self, error: ApiError) -> None:
        """It breaks off, after its stream has begun."""
        self._events.fail(error)

    def _stop_sequence(self) -> str | None:
        """Which text ended the answer; None: it came to its own end."""
        job, tokenizer = self._request.job, self._wire.serving.generator.pair.tokenizer
        if job is None or not job.reply or job.reply[-1] in tokenizer.eos_token_ids:
            return None
        said = tokenizer.decode(job.reply)
        ends = [(said.find(word) + len(word), word) for word in self._asked.stop if word in said]
        return min(ends)[1] if ends else None

    def _send(self, event: Event) -> None:
        self._wire.write_now(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def _ignore(event: Event) -> None:
    """Nobody asked for it."""
