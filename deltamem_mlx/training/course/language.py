"""What a course is about: conversations in a language that its model speaks."""

import random
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

Message = dict[str, str]
Turn = tuple[str, str]  # what is said, and the reply


def messages_of(turns: Iterable[Turn]) -> list[Message]:
    """Turns as messages of a user and an assistant."""
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


class TalkShape(NamedTuple):
    """What a conversation with facts is like.

    Attributes:
        facts (tuple[int, int]): The fewest and the most that are told.
        asked (int): Turns at its end: questions with their answers, and where fewer facts are told,
            talk in place of the rest.
        updates (float): Share of conversations in which a fact is changed.
        chats (int): Turns between what is told that tell nothing, at most.
        noted (float): Share of conversations in which nobody replies to what is told.
        any_word (float): Share of facts whose value is any word of the model's vocabulary.
    """

    facts: tuple[int, int] = (1, 4)
    asked: int = 1
    updates: float = 0.3
    chats: int = 0
    noted: float = 0.0
    any_word: float = 0.0


class Teller(Protocol):
    """Makes conversations in which facts are told; the same seed gives the same ones."""

    rng: random.Random

    def facts(self, count: int) -> list[Any]:
        """Facts that do not contradict each other."""

    def tell(self, fact: Any) -> str:
        """A fact, told."""

    def question(self, fact: Any) -> Turn:
        """A question for a fact, and the answer."""

    def turns(self, said: Sequence[str]) -> list[Turn]:
        """What is told, and a reply to each."""

    def conversation(
        self, shape: TalkShape, talk: Sequence[Turn] = (), chatted: Sequence[Turn] | None = None
    ) -> list[Message]:
        """What is told, then questions with answers, or ``talk`` in their place.

        Between what is told stand turns of ``chatted``, or of the language's own small talk.
        """


class Language(Protocol):
    """What conversations of a course are made of."""

    def teller(self, seed: int, any_words: Sequence[str] = ()) -> Teller:
        """Makes conversations; ``any_words`` may be values of any fact."""

    def ordinary(self, count: int, rng: random.Random) -> list[str]:
        """Different things that people ask which have nothing to do with facts they told."""

    def everyday(self, count: int, rng: random.Random) -> list[str]:
        """Others of that kind, about that many, for conversations that end with one."""

    def beginnings(self, count: int, rng: random.Random) -> list[str]:
        """Different beginnings of texts of many kinds; there may be none."""

    def passages(self, count: int, rng: random.Random) -> list[Turn]:
        """Texts cut in two; there may be none."""

    def histories(self, teller: Any, talk: Sequence[Turn]) -> Sequence["History"]:
        """Kinds of what may be told before something that has nothing to do with it."""


class History(NamedTuple):
    """A kind of what may be told before something else.

    Attributes:
        share (float): How often, beside the others' shares.
        make (Callable[[], list[Message]]): One of the kind.
        facts (bool): It tells facts.
    """

    share: float
    make: Any
    facts: bool = False
