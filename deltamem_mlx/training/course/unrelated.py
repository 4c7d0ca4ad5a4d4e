"""Conversations that end with something that has nothing to do with what came before."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from .language import History, Language, Message, TalkShape, Teller, Turn, messages_of

NEVER, LONGER = 0.25, 0.35  # shares: a fact that nobody told; a text to go on with, longer talk


class Silent(NamedTuple):
    """A conversation, and which of its replies have nothing to do with what came before."""

    messages: list[Message]
    replies: frozenset[int]


def never_told(teller: Teller, count: int) -> list[tuple[list[str], str]]:
    """What is told, and a question for a fact that is not."""
    found = []
    for _ in range(count):
        *now, stranger = teller.facts(teller.rng.randint(2, 5))
        found.append(([teller.tell(fact) for fact in now], teller.question(stranger)[0]))
    return found


class Unrelated:
    """Makes conversations whose last messages are to be answered as without a memory.

    Args:
        language (Language): Of the histories.
        teller (Teller): Its random numbers are used.
        talk (Sequence[Turn]): Ordinary questions, and what the model says to them by itself.
        strangers (Sequence[tuple[list[str], str]]): From `never_told`.
        answers (Mapping[str, str]): What the model says to the questions in those.
        longer (Sequence[Turn]): Texts cut in two, and what the model says at length; there may be
            none.
        joined (int): Histories in a row, at most.
    """

    def __init__(
        self,
        language: Language,
        teller: Teller,
        talk: Sequence[Turn],
        strangers: Sequence[tuple[list[str], str]],
        answers: Mapping[str, str],
        longer: Sequence[Turn],
        *,
        joined: int,
    ):
        self.teller, self.rng, self.talk = teller, teller.rng, talk
        self.strangers, self.answers, self.longer = strangers, answers, longer
        self.joined = joined
        self.kinds: Sequence[History] = language.histories(teller, talk)

    def alone(self, asked: int) -> Silent:
        """One that ends with so many turns, none of which has to do with its history."""
        drawn = self.rng.random()
        turns = self.rng.sample(self.talk, min(asked, len(self.talk)))
        place = self.rng.randrange(len(turns))
        if drawn < NEVER and self.strangers:
            facts, question = self.rng.choice(self.strangers)
            turns[place] = question, self.answers[question]
            history = messages_of(self.teller.turns(facts))
        else:
            history = list(chain(*(self._history() for _ in range(self._several()))))
            if drawn < NEVER + LONGER and self.longer:
                turns[place] = self.rng.choice(self.longer)
        replies = range(len(history) + 1, len(history) + 2 * len(turns), 2)
        return Silent(history + messages_of(turns), frozenset(replies))

    def beside(self, shape: TalkShape) -> Silent:
        """One with facts, whose last turns are questions for them, half at most, and other talk."""
        rng = self.rng
        told = rng.randint(*shape.facts)
        asked = max(min(shape.asked // 2, told), shape.asked - len(self.talk))
        silent = rng.sample(self.talk, shape.asked - asked)
        if self.strangers and rng.random() < NEVER:
            question = rng.choice(self.strangers)[1]
            silent[0] = question, self.answers[question]
        own = shape._replace(asked=asked, facts=(max(told, asked),) * 2)
        conversation = self.teller.conversation(own)
        place = len(conversation) - 2 * asked
        before, end = conversation[:place], conversation[place:]
        others = [self._history(facts=False) for _ in range(self._several() - 1)]
        # A history that is too long is cut at its start: one at most stands behind the facts.
        place = len(others) - (rng.random() < 0.5 and len(others) > 0)
        history = list(chain(*others[:place], before, *others[place:]))
        turns = [(end[i : i + 2], False) for i in range(0, len(end), 2)]
        turns += [(messages_of([turn]), True) for turn in silent]
        rng.shuffle(turns)
        replies = {len(history) + 2 * i + 1 for i, (_, is_silent) in enumerate(turns) if is_silent}
        return Silent(history + list(chain(*(turn for turn, _ in turns))), frozenset(replies))

    def _several(self) -> int:
        return 1 if self.joined == 1 else self.rng.randint(1, self.joined)

    def _history(self, *, facts: bool = True) -> list[Message]:
        kinds = [kind for kind in self.kinds if facts or not kind.facts]
        shares = [kind.share for kind in kinds]
        found: list[Message] = self.rng.choices(kinds, shares)[0].make()
        return found
