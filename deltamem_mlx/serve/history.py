"""Which of the messages in a request a memory was fed before, told by fingerprints of them.

A memory's file keeps the fingerprints, never a text: salted, and short.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..problems import Field, list_of, misfits, whole_number
from ..text.messages import Message
from .errors import ApiError

_FORMAT = "deltamem_mlx.serve"
# What is re-sent is compared with the newest so many messages.
_KEPT = 4096
_FINGERPRINT = Field(lambda v: isinstance(v, str) and _is_hex(v), "16 hex digits")
_SCHEMA = {
    "salt": _FINGERPRINT,
    "system": list_of(_FINGERPRINT, _KEPT),
    "messages": list_of(_FINGERPRINT, _KEPT),
    "turns": whole_number(),
}


@dataclass(frozen=True)
class History:
    """What a memory was fed, as fingerprints.

    Attributes:
        salt (str): Hex, different for every memory.
        system (tuple[str, ...]): The system messages that open the conversation.
        messages (tuple[str, ...]): The newest of the others, in order.
        turns (int): Answers given.
    """

    salt: str
    system: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()
    turns: int = 0

    @classmethod
    def fresh(cls) -> "History":
        """Of an empty memory."""
        return cls(os.urandom(8).hex())

    @classmethod
    def from_note(cls, note: str) -> "History":
        """From the note of a memory file; fresh if another program wrote that."""
        try:
            values = json.loads(note)
        except (ValueError, RecursionError):
            return cls.fresh()
        if not isinstance(values, dict) or values.pop("format", None) != _FORMAT:
            return cls.fresh()
        if set(values) != set(_SCHEMA) or misfits(values, _SCHEMA):
            return cls.fresh()
        lists = {name: tuple(values[name]) for name in ("system", "messages")}
        return cls(**values | lists)

    def to_note(self) -> str:
        """For the note of a memory file."""
        return json.dumps({"format": _FORMAT, **vars(self)}, separators=(",", ":"))

    def fingerprint(self, message: Message) -> str:
        """64 bits over what a client would send back of a message, in hex."""
        said = json.dumps(_content(message), sort_keys=True, ensure_ascii=False)
        salt = bytes.fromhex(self.salt)[:16]
        return hashlib.blake2b(said.encode(), digest_size=8, salt=salt).hexdigest()

    def of(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """The fingerprints of messages."""
        return tuple(map(self.fingerprint, messages))

    def after_turn(self, system: Sequence[Message], said: Sequence[Message]) -> "History":
        """With one more turn; ``system`` is what opened it."""
        return replace(
            self,
            system=self.of(system) or self.system,
            messages=(*self.messages, *self.of(said))[-_KEPT:],
            turns=self.turns + 1,
        )

    def new_part(self, messages: Sequence[Message]) -> int:
        """Where the messages that were not fed before begin.

        Args:
            messages (Sequence[Message]): Of a request, without the system messages at its start.

        Raises:
            ApiError: If an earlier part of them is not what this memory was fed, so that all of
              it would be written again.
        """
        sent, fed = self.of(messages), self.messages
        for start in range(len(sent), 0, -1):
            overlap = min(start, len(fed))
            if overlap and sent[start - overlap : start] == fed[len(fed) - overlap :]:
                return start
        if fed and any(message["role"] == "assistant" for message in messages):
            raise ApiError(
                409,
                f"{self._conflict(sent)} Send only the new messages, or the history as it was, or "
                "begin anew with memory.reset.",
                code="history_conflict",
                param="messages",
            )
        return 0

    def _conflict(self, sent: tuple[str, ...]) -> str:
        """How a history that is sent again differs from what was fed."""
        known = next((n for n in range(len(sent), 0, -1) if _within(sent[:n], self.messages)), 0)
        if known == len(sent):
            return (
                "This memory was told all of these messages, and more after them: what it was told "
                "is in it, and an answer in the place of another is not possible."
            )
        if known:
            return (
                f"Message {known + 1} of the conversation is not what this memory was told there."
            )
        return "The request re-sends a history that this memory was not told."


def _within(part: tuple[str, ...], whole: tuple[str, ...]) -> bool:
    starts = (i for i, one in enumerate(whole) if one == part[0])
    return any(whole[i : i + len(part)] == part for i in starts)


def _content(message: Message) -> dict[str, object]:
    content, calls = message.get("content"), message.get("tool_calls")
    functions = [call.get("function") for call in calls] if isinstance(calls, list) else []
    return {
        "role": message["role"],
        "content": content.strip() if isinstance(content, str) else "",
        "calls": [
            [function.get("name"), _arguments(function.get("arguments"))]
            for function in functions
            if isinstance(function, dict)
        ],
    }


def _arguments(arguments: object) -> object:
    if not isinstance(arguments, str):
        return arguments
    try:
        return json.loads(arguments)
    except ValueError:
        return arguments


def _is_hex(text: str) -> bool:
    return len(text) == 16 and set(text) <= set("0123456789abcdef")
