"""A response as it comes to be: the events of its stream, and the object that they add up to."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ApiError
from ..http.speaking import Piece, Used
from ..kept.items import Item, new_id

Event = dict[str, object]


class ResponseEvents:
    """Puts a response together and tells each step of it.

    Args:
        response (dict): What is known of it: ``id``, ``model``, and what it repeats of the request.
        send (Callable): Takes each event.

    Attributes:
        response (dict): As it is by now.
    """

    def __init__(self, response: Mapping[str, object], send: Callable[[Event], None]):
        self._output: list[Item] = []
        self.response: dict[str, object] = {
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "error": None,
            "incomplete_details": None,
            "usage": None,
            **response,
            "output": self._output,
        }
        self._send, self._count = send, 0
        self._begun: Item | None = None  # the item that is being said
        self._blank = ""  # white space that is only said if more follows

    def begin(self) -> None:
        """The request is accepted."""
        self._tell("response.created", response=self.response)
        self._tell("response.in_progress", response=self.response)

    def hear(self, piece: Piece) -> None:
        """Go on with a piece of the answer."""
        if piece.reasoning:
            self._say("reasoning", piece.reasoning)
        if piece.text:
            self._say("message", piece.text)
        for call in piece.calls or []:
            self._call(call)

    def complete(self, finish: str | None, used: Used, memory: dict[str, object] | None) -> None:
        """The answer is complete: the response is, too. `finished` tells so."""
        if not any(item["type"] != "reasoning" for item in [*self._output, *self._current()]):
            self._close("completed")
            self._open("message")
        cut = finish == "length"
        self._close("incomplete" if cut else "completed")
        self.response["status"] = "incomplete" if cut else "completed"
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        self.response["usage"] = _usage(used, memory)

    def finished(self) -> None:
        """Say that it is complete."""
        self._tell(f"response.{self.response['status']}", response=self.response)

    def fail(self, error: ApiError) -> None:
        """The answer breaks off."""
        self.response["status"] = "failed"
        self.response["error"] = {"code": error.code or "server_error", "message": str(error)}
        said = {"code": error.code, "message": str(error), "param": error.param}
        self._tell("error", **said)
        self._tell("response.failed", response=self.response)

    def _tell(self, kind: str, **values: object) -> None:
        self._send({"type": kind, "sequence_number": self._count, **values})
        self._count += 1

    def _current(self) -> list[Item]:
        return [] if self._begun is None else [self._begun]

    def _say(self, kind: str, text: str) -> None:
        if self._begun is None or self._begun["type"] != kind:
            text, self._blank = self._blank + text, ""
            if not text.strip():
                self._blank = text
                return
            self._close("completed")
            self._open(kind)
        part = self._current()[0]["content"][0]
        part["text"] += text
        name = "output_text" if kind == "message" else "reasoning_text"
        extra: Event = {"logprobs": []} if kind == "message" else {}
        self._tell(f"response.{name}.delta", delta=text, **self._place(), **extra)

    def _open(self, kind: str) -> None:
        if kind == "message":
            item: Item = {"id": new_id("msg"), "type": kind, "role": "assistant"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        else:
            item = {"id": new_id("rs"), "type": kind, "summary": []}
            part = {"type": "reasoning_text", "text": ""}
        self._begun = {**item, "status": "in_progress", "content": []}
        self._tell("response.output_item.added", output_index=len(self._output), item=self._begun)
        self._tell("response.content_part.added", part=part, **self._place())
        self._begun["content"] = [part]

    def _close(self, status: str) -> None:
        """The item that is being said is complete, or is not going to be."""
        if self._begun is None:
            return
        item, part = self._begun, self._begun["content"][0]
        name = "output_text" if item["type"] == "message" else "reasoning_text"
        extra: Event = {"logprobs": []} if item["type"] == "message" else {}
        self._tell(f"response.{name}.done", text=part["text"], **self._place(), **extra)
        self._tell("response.content_part.done", part=part, **self._place())
        self._done(item, status)

    def _done(self, item: Item, status: str) -> None:
        item["status"] = status
        self._tell("response.output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._begun = None

    def _place(self) -> dict[str, object]:
        id = self._current()[0]["id"]
        return {"item_id": id, "output_index": len(self._output), "content_index": 0}

    def _call(self, call: Mapping[str, Any]) -> None:
        self._close("completed")
        self._blank, function = "", call["function"]
        arguments = str(function["arguments"])
        item: Item = {
            "id": new_id("fc"),
            "type": "function_call",
            "call_id": str(call["id"]),
            "name": str(function["name"]),
            "arguments": "",
            "status": "in_progress",
        }
        place = {"item_id": item["id"], "output_index": len(self._output)}
        self._tell("response.output_item.added", output_index=len(self._output), item=item)
        self._tell("response.function_call_arguments.delta", delta=arguments, **place)
        item["arguments"] = arguments
        done = {"arguments": arguments, "name": item["name"]}
        self._tell("response.function_call_arguments.done", **done, **place)
        self._done(item, "completed")


def _usage(used: Used, memory: dict[str, object] | None) -> dict[str, object]:
    usage: dict[str, object] = {
        "input_tokens": used.prompt,
        "input_tokens_details": {"cached_tokens": used.cached, "cache_write_tokens": 0},
        "output_tokens": used.generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt + used.generated,
    }
    return usage if memory is None else usage | {"memory": memory}
