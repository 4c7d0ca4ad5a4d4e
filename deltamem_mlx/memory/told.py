"""What a memory was told, as fingerprints: what is re-sent is known again, and no text is kept.

They are salted and short. Who has them can test whether a message that they guess was said.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..problems import Field, list_of, misfits, whole_number
from ..text.messages import Message

_OLD_FORMAT = "deltamem_mlx.serve"  # of a note that the server kept them in
# What is re-sent is compared with the newest so many messages.
MOST_MESSAGES = 4096
FINGERPRINT = Field(lambda v: isinstance(v, str) and _is_hex(v), "16 hex digits")
_SCHEMA = {
    "salt": FINGERPRINT,
    "system": list_of(FINGERPRINT, MOST_MESSAGES),
    "messages": list_of(FINGERPRINT, MOST_MESSAGES),
    "turns": whole_number(),
}


@dataclass(frozen=True)
class Fingerprints:
    """What a memory was told.

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
    def nothing(cls) -> "Fingerprints":
        """Of an empty memory."""
        return cls(os.urandom(8).hex())

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Fingerprints":
        """From what `as_json` gave; `told_problems` has to find nothing in it."""
        lists = {name: tuple(values[name]) for name in ("system", "messages")}
        return cls(**dict(values) | lists)

    def as_json(self) -> dict[str, object]:
        """For a file."""
        return dict(vars(self))

    def fingerprint(self, message: Message) -> str:
        """64 bits over what a client would send back of a message, in hex."""
        said = json.dumps(_content(message), sort_keys=True, ensure_ascii=False)
        salt = bytes.fromhex(self.salt)[:16]
        return hashlib.blake2b(said.encode(), digest_size=8, salt=salt).hexdigest()

    def of(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """The fingerprints of messages."""
        return tuple(map(self.fingerprint, messages))

    def untold(self, messages: Sequence[Message]) -> list[Message]:
        """Those of the messages that were not told."""
        known = set(self.messages)
        marked = zip(messages, self.of(messages), strict=True)
        return [message for message, mark in marked if mark not in known]

    def after(
        self, system: Sequence[Message], said: Sequence[Message], turns: int = 1
    ) -> "Fingerprints":
        """With ``turns`` more, in which ``said`` was said; ``system`` is what opened them."""
        return replace(
            self,
            system=self.of(system) or self.system,
            messages=(*self.messages, *self.of(said))[-MOST_MESSAGES:],
            turns=self.turns + turns,
        )


def told_problems(values: object) -> list[str]:
    """What in a file's JSON is no `Fingerprints`, a line each."""
    if not isinstance(values, dict):
        return ["not an object"]
    return misfits(values, _SCHEMA) + [f"{n}: not known" for n in values if n not in _SCHEMA]


def told_in_note(note: str) -> Fingerprints | None:
    """What the server of an older version kept in a memory's note; None: that is no such note."""
    if _OLD_FORMAT not in note:
        return None
    try:
        values = json.loads(note)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or values.pop("format", None) != _OLD_FORMAT:
        return None
    return None if told_problems(values) else Fingerprints.from_json(values)


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
