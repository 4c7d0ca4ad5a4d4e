"""Conversations in English: facts told, changed, and asked for in other words."""

import random
from collections.abc import Sequence
from typing import NamedTuple

from . import words
from .kinds import PEOPLE, FactKind
from .language import Message, TalkShape, Turn, messages_of
from .relations import RELATIONS

RELATIVES = words.listed(
    "sister, brother, mother, father, aunt, uncle, cousin, grandmother, grandfather, neighbor, "
    "roommate, best friend, teacher, boss, doctor, landlord, colleague, niece, nephew, husband, "
    "wife"
)
REPLIES = ("Okay.", "Noted.", "I see.", "Alright.", "Thank you, I will remember.", "Good to hear.")
OPENERS = ("", "", "", "", "I think ", "You know, ", "Just so you know: ", "Please remember: ")
CORRECTIONS = ("", "", "A correction: ", "There is news: ", "Things have changed: ")
CHATS = (
    ("Hi there!", "Hello! What can I do for you?"),
    ("Good morning.", "Good morning to you!"),
    ("What a lovely day.", "Yes, enjoy it!"),
    ("How many legs does a horse have?", "A horse has four legs."),
    ("I am a little tired.", "Maybe a short nap would help."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is three plus four?", "Three plus four is seven."),
    ("It is cold outside.", "Then put on something warm."),
    ("Tell me a fact about water.", "Water boils at 100 degrees Celsius at sea level."),
    ("I missed the bus again.", "That is a pity. The next one will come."),
    ("What is the color of the sky?", "The sky is blue on a clear day."),
    ("Is a tomato a fruit?", "Yes, botanically a tomato is a fruit."),
    ("Where were we?", "We were just talking."),
    ("I have to think about that.", "Take all the time you need."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("What do cows drink?", "Cows drink water."),
    ("That was a good film.", "I am glad that you liked it."),
    ("Can you help me later?", "Of course, just ask."),
    ("Which month comes after May?", "June comes after May."),
    ("I do not like Mondays.", "Many people feel that way."),
)


class ToldFact(NamedTuple):
    """Something that can be told: a kind of fact, whom it is about, and the value."""

    kind: FactKind
    subject: str
    value: str

    def said(self, wording: str, *, reply: bool = False) -> str:
        """A wording filled in, as a sentence."""
        subject = self.subject.replace("my ", "your ", 1) if reply else self.subject
        article = "an" if self.value[0].lower() in "aeiou" else "a"
        if self.value.endswith(("s", "scissors")) and not self.value.endswith(("ss", "us", "is")):
            article = "some"
        return sentence(wording.format(s=subject, v=self.value, a=article))


def sentence(text: str) -> str:
    """A text that begins with a capital."""
    return text[0].upper() + text[1:]


def behind(opener: str, text: str, subject: str) -> str:
    """A sentence behind an opener: its first word small again, unless it is a name."""
    if not opener or text.startswith(subject):
        return opener + text
    first = text.split()[0].strip(",.:'s")
    names = {*words.CITIES, *words.COUNTRIES, *words.NAMES, *words.PETS, "I"}
    return opener + (text if first in names else text[0].lower() + text[1:])


class EnglishTeller:
    """Makes conversations; the same seed gives the same ones.

    Args:
        seed (int): Of all choices.
        any_words (Sequence[str]): What a share of the facts has as its value, whatever their kind:
            what is told has to be copied then, and cannot be guessed.
    """

    def __init__(self, seed: int, any_words: Sequence[str] = ()):
        self.rng, self.any_words = random.Random(seed), any_words

    def subject(self, kind: FactKind) -> str:
        """Whom or what a fact of a kind is about."""
        if kind.subjects != PEOPLE:
            return self.rng.choice(kind.subjects)
        if self.rng.random() < 0.2:
            return "my " + self.rng.choice(RELATIVES)
        return self.rng.choice(words.NAMES)

    def value(self, kind: FactKind, any_share: float = 0.0) -> str:
        """A value of a kind, or for a share of them any word."""
        if any_share and self.any_words and self.rng.random() < any_share:
            return self.rng.choice(self.any_words)
        return self.rng.choice(kind.values)

    def facts(
        self, count: int, kind: FactKind | None = None, any_share: float = 0.5
    ) -> list[ToldFact]:
        """Facts of which no two share kind and subject, nor a value."""
        facts: list[ToldFact] = []
        while len(facts) < count:
            chosen = kind or self.rng.choice(RELATIONS)
            fact = ToldFact(chosen, self.subject(chosen), self.value(chosen, any_share))
            if all(
                f.value != fact.value
                and (f.kind, f.subject) != (chosen, fact.subject)
                and fact.value != f.subject
                and f.value != fact.subject
                for f in facts
            ):
                facts.append(fact)
        return facts

    def tell(self, fact: ToldFact) -> str:
        """A fact, told."""
        told = fact.said(self.rng.choice(fact.kind.tells))
        return behind(self.rng.choice(OPENERS), told, fact.subject)

    def change(self, fact: ToldFact) -> str:
        """A fact, told as one that has changed."""
        told = fact.said(self.rng.choice(fact.kind.changes))
        return behind(self.rng.choice(CORRECTIONS), told, fact.subject)

    def question(self, fact: ToldFact) -> Turn:
        """A question for a fact, and the answer."""
        asked = fact.said(self.rng.choice(fact.kind.asks))
        return asked, fact.said(fact.kind.reply, reply=True)

    def conversation(
        self, shape: TalkShape, talk: Sequence[Turn] = (), chatted: Sequence[Turn] | None = None
    ) -> list[Message]:
        """What is told, then questions with answers; or ``talk`` in their place.

        In one of four conversations all facts are of one kind. Turns of ``chatted`` may stand
        between what is told.
        """
        rng, chatted = self.rng, CHATS if chatted is None else chatted
        count = rng.randint(*shape.facts)
        kind = rng.choice(RELATIONS) if count > 1 and rng.random() < 0.25 else None
        now = self.facts(count, kind, shape.any_word)
        said = [self.tell(fact) for fact in now]
        if rng.random() < shape.updates:
            place = rng.randrange(count)
            taken = {fact.value for fact in now}
            while now[place].value in taken:
                value = self.value(now[place].kind, shape.any_word)
                now[place] = now[place]._replace(value=value)
            said.insert(rng.randint(place + 1, len(said)), self.change(now[place]))
        turns = self.turns(said)
        for _ in range(rng.randint(0, shape.chats)):
            turns.insert(rng.randint(0, len(turns)), rng.choice(chatted))
        messages = messages_of(turns)
        end = talk or self._questions(now, shape.asked)
        # As a file that is remembered: its paragraphs are messages that nobody replied to.
        if shape.noted and rng.random() < shape.noted:
            messages = [m for m in messages if m["role"] == "user"]
        return messages + messages_of(end)

    def _questions(self, known: Sequence[ToldFact], count: int) -> Sequence[Turn]:
        """Each fact at most once, or its answer would stand in the visible part; else talk."""
        facts = self.rng.sample(known, min(count, len(known)))
        turns = [self.question(fact) for fact in facts]
        turns += self.rng.sample(CHATS, count - len(facts))
        self.rng.shuffle(turns)
        return turns

    def turns(self, said: Sequence[str]) -> list[Turn]:
        """What is told, one to three sentences at a time, and a reply to each."""
        turns = []
        while said:
            several = self.rng.choice((1, 2, 3))
            turns.append((" ".join(said[:several]), self.rng.choice(REPLIES)))
            said = said[several:]
        return turns
