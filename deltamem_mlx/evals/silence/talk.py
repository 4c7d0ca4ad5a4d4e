"""A chat of two people about their days, as long as need be."""

import random
from collections.abc import Callable

from ...text.messages import Message

SPEAKERS = ("Nora", "Ben", "Ruth", "Ivan", "Tess", "Karl", "Ida", "Omar", "Jane", "Paul")
LINES = (
    "I went to {place} {time}.",
    "How was {place}?",
    "It was {mood}, I would go again.",
    "We fixed {thing} {time}, it took hours.",
    "My {person} wants to see {place} with me.",
    "That sounds {mood}!",
    "I have been reading about {thing} {time}.",
    "Did you ever find {thing}?",
    "Yes, my {person} had it all along.",
    "I signed up for a course, it starts {time}.",
    "My {person} called, everything is {mood}.",
    "I am so tired, I carried {thing} up the stairs.",
    "Shall we meet at {place} {time}?",
    "Sure, I will bring {thing}.",
    "Guess what, my {person} bought {thing}!",
    "I could not sleep, the neighbours were {mood}.",
    "Remember when we lost {thing} at {place}?",
    "Of course, that was {mood}.",
    "I cooked for my {person} {time} and it was {mood}.",
    "Send me a picture of {thing} when you can.",
    "I am learning to repair {thing}, it is {mood}.",
    "They closed {place}, what a pity.",
    "Take care, and say hello to your {person}.",
    "I will think about {thing} and tell you {time}.",
)
FILLERS = {
    "place": ("the lake", "the museum", "the market", "the old harbour", "the library", "the park"),
    "time": ("yesterday", "last week", "on Sunday", "in the morning", "this month", "on Friday"),
    "mood": ("lovely", "strange", "quite loud", "funny", "better than expected", "a bit sad"),
    "thing": ("the fence", "a blue lamp", "the tent", "an old map", "the boat", "a rocking chair"),
    "person": ("sister", "boss", "neighbour", "cousin", "brother", "friend"),
}
SESSION = 20  # lines


def two_people(tokens: int, count: Callable[[str], int], rng: random.Random) -> list[list[Message]]:
    """Sessions of a chat, each a message of its own, with so many tokens in all or a few more.

    Args:
        tokens (int): How long it is.
        count (Callable[[str], int]): How many tokens a text has.
        rng (random.Random): Decides who talks, and about what.
    """
    speakers = rng.sample(SPEAKERS, 2)
    sessions: list[list[Message]] = []
    lines = [f"A conversation between {speakers[0]} and {speakers[1]}."]
    used = count(lines[0])
    while used < tokens:
        words = {name: rng.choice(choices) for name, choices in FILLERS.items()}
        line = f"{speakers[len(lines) % 2]}: {rng.choice(LINES).format(**words)}"
        lines.append(line)
        used += count(line)
        if len(lines) == SESSION:
            sessions.append([{"role": "user", "content": "\n".join(lines)}])
            lines = []
    return [*sessions, [{"role": "user", "content": "\n".join(lines)}]] if lines else sessions
