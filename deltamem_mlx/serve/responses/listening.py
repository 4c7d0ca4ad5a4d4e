"""How a response reaches its client: as events while it comes to be, or whole."""

import json
from collections.abc import Callable

from ..errors import ApiError
from ..http.speaking import Piece, Used
from ..http.usage import memory_usage
from ..http.wire import Wire
from ..turns.job import ServedRequest
from .events import Event, ResponseEvents
from .request import ResponseRequest


class ResponseListener:
    """Hears an answer and sends it.

    Args:
        wire (Wire): The connection.
        given (ResponseRequest): What was asked.
        request (ServedRequest): The same, as it is answered.
        keep (Callable): Takes the response once it is complete, before the client knows.
    """

    def __init__(
        self,
        wire: Wire,
        given: ResponseRequest,
        request: ServedRequest,
        keep: Callable[[dict[str, object]], None],
    ):
        self._wire, self._request, self._keep = wire, request, keep
        self._stream, self._finish = given.asked.stream, "stop"
        about = {"id": given.id, "model": given.asked.model, **given.echo}
        self._events = ResponseEvents(about, self._send if self._stream else _ignore)

    def begin(self) -> None:
        """The request is accepted."""
        if self._stream:
            self._wire.begin_stream()
        self._events.begin()

    def wait(self) -> None:
        """A long prompt is being fed."""
        if self._stream:
            self._wire.write_now(b": keepalive\n\n")

    def hear(self, piece: Piece) -> None:
        """A piece of the answer."""
        self._finish = piece.finish or self._finish
        self._events.hear(piece)

    def end(self, used: Used) -> None:
        """It is complete."""
        self._events.complete(self._finish, used, memory_usage(self._request.job))
        self._keep(self._events.response)
        self._events.finished()
        if not self._stream:
            self._wire.send_json(self._events.response)

    def fail(self, error: ApiError) -> None:
        """It breaks off, after its stream has begun."""
        self._events.fail(error)

    def _send(self, event: Event) -> None:
        self._wire.write_now(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())


def _ignore(event: Event) -> None:
    """Nobody asked for it."""
