"""What people take back in a chat, as clients do that send all of it with each message."""

from typing import Protocol


class TakesBack(Protocol):
    """A chat whose answers can be asked for again, and whose messages can be edited.

    Attributes:
        said (list[dict]): Its messages, the last one an answer.
    """

    said: list[dict]

    def send(self) -> str:
        """Have the last message answered."""

    def ask(self, text: str) -> str:
        """Say something and have it answered."""

    def regenerate(self) -> str:
        del self.said[-1:]
        return self.send()

    def edit(self, i: int, text: str) -> str:
        """Of the user's messages the ``i``th; what came after it is gone."""
        places = [n for n, message in enumerate(self.said) if message["role"] == "user"]
        del self.said[places[i] :]
        return self.ask(text)
