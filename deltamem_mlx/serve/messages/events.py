"""A message as it comes to be: the events of its stream, and the object that they add up to."""

import json
from collections.abc import Callable
from typing import Any

from ..errors import ApiError
from ..http.speaking import Piece, Used

Event = dict[str, object]
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_DELTAS = {"text": "text_delta", "thinking": "thinking_delta"}


def error_body(error: ApiError) -> dict[str, object]:
    """The JSON that Anthropic's clients read; ``code`` and ``param`` are as in OpenAI's form."""
    kind = "invalid_request_error" if error.status < 500 else "api_error"
    said = {"type": _TYPES.get(error.status, kind), "message": str(error)}
    return {"type": "error", "error": said | {"code": error.code, "param": error.param}}


class MessageEvents:
    """Puts a message together and tells each step of it.

    Args:
        id, model (str): Of the message.
        send (Callable): Takes each event.

    Attributes:
        message (dict): As it is by now.
    """

    def __init__(self, id: str, model: str, send: Callable[[Event], None]):
        self._content: list[dict[str, Any]] = []
        self.message: dict[str, object] = {
            "id": id,
            "type": "message",
            "role": "assistant",
            "model": model,
            "content": self._content,
            "stop_reason": None,
            "stop_sequence": None,
        }
        self._send, self._open = send, False
        self._blank = ""  # white space that is only said if more follows

    def begin(self, used: Used) -> None:
        """The request is accepted, and its prompt has so many tokens."""
        self.message["usage"] = _usage(used)
        self._send({"type": "message_start", "message": self.message})

    def hear(self, piece: Piece) -> None:
        """Go on with a piece of the answer."""
        if piece.reasoning:
            self._say("thinking", piece.reasoning, {"signature": ""})
        if piece.text:
            self._say("text", piece.text, {})
        for call in piece.calls or []:
            self._call(call)

    def complete(
        self, reason: str, sequence: str | None, used: Used, memory: dict[str, object] | None
    ) -> None:
        """The answer is complete."""
        if not self._content:
            self._start({"type": "text", "text": ""})
        self._stop()
        usage = _usage(used) | ({} if memory is None else {"memory": memory})
        self.message |= {"stop_reason": reason, "stop_sequence": sequence, "usage": usage}
        delta = {"stop_reason": reason, "stop_sequence": sequence}
        self._send({"type": "message_delta", "delta": delta, "usage": usage})
        self._send({"type": "message_stop"})

    def fail(self, error: ApiError) -> None:
        """The answer breaks off."""
        self._send(error_body(error))

    def _say(self, kind: str, text: str, more: dict[str, str]) -> None:
        if not self._open or self._content[-1]["type"] != kind:
            text, self._blank = self._blank + text, ""
            if not text.strip():
                self._blank = text
                return
            self._stop()
            self._start({"type": kind, kind: "", **more})
        self._content[-1][kind] += text
        self._delta({"type": _DELTAS[kind], kind: text})

    def _call(self, call: dict[str, Any]) -> None:
        self._stop()
        self._blank, function = "", call["function"]
        self._start({"type": "tool_use", "id": call["id"], "name": function["name"], "input": {}})
        self._delta({"type": "input_json_delta", "partial_json": function["arguments"]})
        self._content[-1]["input"] = json.loads(function["arguments"])
        self._stop()

    def _start(self, block: dict[str, Any]) -> None:
        self._content.append(block)
        index = len(self._content) - 1
        self._send({"type": "content_block_start", "index": index, "content_block": block})
        self._open = True

    def _delta(self, delta: dict[str, object]) -> None:
        index = len(self._content) - 1
        self._send({"type": "content_block_delta", "index": index, "delta": delta})

    def _stop(self) -> None:
        if self._open:
            self._send({"type": "content_block_stop", "index": len(self._content) - 1})
        self._open = False


def _usage(used: Used) -> dict[str, object]:
    """Anthropic counts apart what had been fed before."""
    return {
        "input_tokens": used.prompt - used.cached,
        "cache_read_input_tokens": used.cached,
        "cache_creation_input_tokens": 0,
        "output_tokens": used.generated,
    }
