"""The little language of the built-in model, for its own course."""

import random
from collections.abc import Sequence

from ...builtin.language import LittleFact, LittleTalk
from ...builtin.words import ACKS, CHATS
from .language import History, Message, TalkShape, Turn, messages_of

NEVER = 0.2  # share of questions for what was not told


class LittleTeller:
    """Makes conversations in the built-in model's language; no pair that is evaluated is told.

    Args:
        seed (int): Of all choices.
    """

    def __init__(self, seed: int):
        self._talk = LittleTalk(seed)
        self.rng = self._talk.rng

    def facts(self, count: int) -> list[LittleFact]:
        """Facts about different people, animals or things."""
        return self._talk.facts(count)

    def tell(self, fact: LittleFact) -> str:
        """A fact, told."""
        return fact.tell(self.rng)

    def question(self, fact: LittleFact) -> Turn:
        """A question for a fact, and the answer."""
        return fact.ask(self.rng), fact.answer()

    def turns(self, said: Sequence[str]) -> list[Turn]:
        """What is told, and a reply to each."""
        return [(text, self.rng.choice(ACKS)) for text in said]

    def conversation(
        self, shape: TalkShape, talk: Sequence[Turn] = (), chatted: Sequence[Turn] | None = None
    ) -> list[Message]:
        """What is told, then questions with answers, or ``talk`` in their place.

        The language has small talk of its own, so ``chatted`` is not used.
        """
        messages = self._talk.conversation(
            shape.facts, shape.chats, shape.updates, NEVER, shape.asked, recalls=shape.chats // 3
        )
        return messages[: -2 * shape.asked] + messages_of(talk) if talk else messages


class Little:
    """The built-in model's language."""

    def teller(self, seed: int, any_words: Sequence[str] = ()) -> LittleTeller:
        """Makes conversations; the base knows no values but the language's own."""
        return LittleTeller(seed)

    def ordinary(self, count: int, rng: random.Random) -> list[str]:
        """Small talk: as much as there is."""
        return [said for said, _ in CHATS[::2]]

    def everyday(self, count: int, rng: random.Random) -> list[str]:
        """The same."""
        return [said for said, _ in CHATS[::2]]

    def beginnings(self, count: int, rng: random.Random) -> list[str]:
        """None: it writes no texts."""
        return []

    def passages(self, count: int, rng: random.Random) -> list[Turn]:
        """None."""
        return []

    def histories(self, teller: LittleTeller, talk: Sequence[Turn]) -> list[History]:
        """Facts, and small talk."""

        def facts() -> list[Message]:
            told = teller.facts(teller.rng.randint(1, 6))
            return messages_of(teller.turns([teller.tell(fact) for fact in told]))

        def chat() -> list[Message]:
            return messages_of(teller.rng.choices(talk, k=teller.rng.randint(2, 8)))

        return [History(0.7, facts, facts=True), History(0.3, chat)]
