"""Chats of two people about their days; `eval silence` has other lines."""

import random

from . import words

LINES = (
    "How was your weekend?",
    "Quiet. I walked along the river and slept a lot.",
    "We painted the kitchen {color}, it looks good.",
    "Did you see the news today?",
    "My manager wants the report by {day}.",
    "That sounds like a lot of fun!",
    "I made {food}, it came out great.",
    "We should meet again soon, maybe on {day}?",
    "The kids loved the trip to {city}.",
    "My car broke down again, near {city}.",
    "Oh no, I am sorry to hear that.",
    "Do you remember our holiday in {city}?",
    "Yes! The hotel was awful, but the {food} was great.",
    "I started with {hobby} in {month}.",
    "How long have you been doing that?",
    "About two months. It is harder than I thought.",
    "Guess what, I got the job!",
    "Congratulations! When do you start?",
    "In {month}, if all goes well.",
    "I will call you tomorrow.",
    "The garden needs water, it has not rained since {day}.",
    "We adopted a {animal} from the shelter.",
    "No way! Send me a photo.",
    "She moved out in spring and lives in {city} now.",
    "I need a new {thing}, mine is broken.",
    "That photo is lovely, where was it taken?",
    "Thanks, it was at the beach near {city}.",
    "We had {food} on {day}, with far too much {drink}.",
    "The concert starts at eight, do not be late.",
    "I could not sleep last night.",
    "Maybe drink less {drink}.",
    "Let us cook together then.",
    "What are you up to these days?",
    "Work, mostly. And a bit of {hobby}.",
    "I found an old {thing} in the attic!",
    "Keep it, it may be worth something.",
    "Have you finished the book I gave you?",
    "Almost. The part with the {animal} made me laugh.",
    "Happy birthday! Did you get my card?",
    "It arrived on {day}, thank you so much.",
    "Honestly, I am thinking about moving to {city}.",
    "You always say that in {month}.",
)
FILLERS = {
    "city": words.CITIES,
    "food": words.FOODS,
    "drink": words.DRINKS,
    "hobby": words.HOBBIES,
    "month": words.MONTHS,
    "day": words.DAYS,
    "animal": words.ANIMALS,
    "thing": words.THINGS,
    "color": words.COLORS,
}


def two_people(lines: int, rng: random.Random) -> str:
    """A chat of so many lines."""
    speakers = rng.sample(words.NAMES, 2)
    said = []
    for number in range(lines):
        fillers = {name: rng.choice(values) for name, values in FILLERS.items()}
        said.append(f"{speakers[number % 2]}: {rng.choice(LINES).format(**fillers)}")
    return "\n".join(said)
