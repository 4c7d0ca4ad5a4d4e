"""What may be told in English before something that has nothing to do with it."""

from collections.abc import Sequence

from . import words
from .chats import two_people
from .english import CHATS, EnglishTeller
from .language import History, Message, Turn, messages_of
from .library import Library

TEXT = 1200  # characters of running text at most
NOTED = 0.3  # share of what is told without replies
LISTED = (words.THINGS, words.FOODS, words.TASKS, words.CITIES, words.JOBS, words.ANIMALS)


class EnglishHistories:
    """Makes histories: facts, chats of two people, running text, code, lists, ordinary talk.

    Args:
        teller (EnglishTeller): Of facts; its random numbers are used.
        library (Library): Texts and code.
        talk (Sequence[Turn]): Ordinary questions with their answers.
        left_out (frozenset[str]): What is said in no ordinary talk.
    """

    def __init__(
        self,
        teller: EnglishTeller,
        library: Library,
        talk: Sequence[Turn],
        left_out: frozenset[str] = frozenset(),
    ):
        self.teller, self.rng, self.library = teller, teller.rng, library
        self.talk = [turn for turn in (*CHATS, *talk) if turn[0] not in left_out]

    def kinds(self) -> list[History]:
        """All kinds, with their shares."""
        found = [
            History(0.35, self.facts, facts=True),
            History(0.3, self.two_people),
            History(0.07, self.listing),
            History(0.1, self.ordinary),
        ]
        found += [History(0.1, self.article)] * bool(self.library.texts)
        return found + [History(0.08, self.program)] * bool(self.library.code)

    def facts(self) -> list[Message]:
        said = [self.teller.tell(fact) for fact in self.teller.facts(self.rng.randint(1, 4))]
        messages = messages_of(self.teller.turns(said))
        if self.rng.random() < NOTED:
            return [m for m in messages if m["role"] == "user"]
        return messages

    def two_people(self) -> list[Message]:
        lines = self.rng.choice((6, 10, 16, 20, 32))
        return [{"role": "user", "content": two_people(lines, self.rng)}]

    def article(self) -> list[Message]:
        text, wanted = "", self.rng.randint(200, TEXT)
        while len(text) < wanted:
            text += self.rng.choice(self.library.texts) + "\n\n"
        return [{"role": "user", "content": text[:wanted]}]

    def program(self) -> list[Message]:
        return [{"role": "user", "content": self.rng.choice(self.library.code)}]

    def listing(self) -> list[Message]:
        count = self.rng.randint(4, 16)
        mark = self.rng.choice(("- ", "* ", "{}. "))
        listed = self.rng.sample(self.rng.choice(LISTED), count)
        lines = [mark.format(i) + x for i, x in enumerate(listed, 1)]
        return [{"role": "user", "content": "\n".join(lines)}]

    def ordinary(self) -> list[Message]:
        return messages_of(self.rng.sample(self.talk, self.rng.randint(1, 4)))
