"""What people ask that has nothing to do with facts they told: none of it is in `eval silence`."""

import random
from collections.abc import Sequence

from . import words

Wordings = Sequence[tuple[str, Sequence[str]]]

# Wordings with what may be put in.
WORDINGS = (
    ("Add {} and {}.", words.NUMBERS),
    ("Multiply {} by {}.", words.NUMBERS),
    ("Is {} larger than {}?", words.NUMBERS),
    ("Count from {} upwards.", words.NUMBERS),
    ("Name a city in {}.", words.COUNTRIES),
    ("In which part of the world is {}?", words.COUNTRIES + words.CITIES),
    ("Which language do people speak in {}?", words.COUNTRIES),
    ("What is a {} made of?", words.THINGS),
    ("How does a {} work?", words.THINGS),
    ("How does a {} differ from a {}?", words.ANIMALS + words.THINGS),
    ("How long does a {} live?", words.ANIMALS),
    ("What does a {} eat?", words.ANIMALS),
    ("Explain {} to a child.", words.SUBJECTS),
    ("Why do we study {}?", words.SUBJECTS),
    ("Define {}.", words.WORDS),
    ("How is {} spelled?", words.WORDS),
    ("Give me a word that rhymes with {}.", words.WORDS),
    ("Use the word {} in a sentence.", words.WORDS),
    ("Write some verses in which a {} appears.", words.WORDS),
    ("Tell me a story about a {} and a {}.", words.ANIMALS),
    ("Invent a riddle about a {}.", words.THINGS),
    ("How would you advertise {}?", words.DRINKS + words.FOODS),
    ("What does a {} look like?", words.WORDS),
    ("What is {} in Spanish?", words.WORDS),
    ("List three kinds of {}.", ("trees", "birds", "shoes", "music", "bread", "clouds", "cars")),
    ("How do I cook {}?", words.FOODS),
    ("How can I learn {}?", words.LANGUAGES + words.HOBBIES),
    ("Give me a tip for {}.", words.HOBBIES),
    ("Can you recommend a book about {}?", words.SUBJECTS + words.HOBBIES),
    ("Show me Python code that {}.", (
        "returns the larger of two numbers", "counts the vowels of a text", "sorts a list",
        "reads a file", "checks whether a number is even", "joins two lists", "prints a table",
        "multiplies all numbers of a list", "turns a text into capitals", "rolls a die",
    )),
    ("I am new to programming. Explain {}.", (
        "a variable", "a function", "a class", "a list", "recursion", "an array", "a string",
        "a comment", "a compiler", "a pointer", "a package", "a dictionary", "inheritance",
    )),
    ("How do I {} on a computer?", (
        "copy a file", "take a screenshot", "make a folder", "install a program", "zip a file",
        "change the password", "free some space", "connect a printer", "find a file",
    )),
)  # fmt: skip

_EVERYDAY = """
Hi! | Hey there! | Hi, how is it going? | Good morning! | Good evening! | What's up? |
Nice to meet you. | I have a question. | Are you there? | Are you a robot? |
What is your name? | Do you sleep? | Thanks! | Thanks a lot, that was useful. | You are great. |
Bye! | See you tomorrow. | That was wrong. | Please try again. | I am sad. | I am happy today. |
I feel tired. | I am hungry. | It is hot today. | I had a bad day. | Help me please. |
Tell me something interesting. | Tell me a fun fact. | Say something nice. |
Let's play a game. | Sing a song. | Make me laugh. | Surprise me. | I cannot sleep. |
I need some advice. | What do you think? | Really? | Okay. | Yes. | No. | Why? | Go on. |
How do I boil an egg? | Name three fruits. | What is the largest ocean? |
What does a doctor do? | Explain gravity in one sentence. | Which animal is the fastest? |
Write a short greeting card. | How many days are in a week? | Suggest a name for a boat. |
What is the opposite of hot? | Who wrote Romeo and Juliet? | Give me a recipe for pancakes. |
How do plants drink? | Tell me about the moon. | What should I wear in winter? |
What is a verb? | Name a planet. | How do birds fly? | What color are bananas? |
Describe a forest. | How do I learn to swim? | What is a computer? | Recommend a hobby. |
How far is the sun? | What is bread made of? | Who was Albert Einstein? | What is music? |
Write a line of a poem. | What time do people eat lunch? | What is a good breakfast? |
How old is the Earth? | Give one reason to exercise. | What is a triangle? |
How do I write an email? | What is a noun? | Name a country in Africa. | What is ice? |
Why do cats purr? | What causes rain? | How do I clean a window? |
How do I remove ink from a shirt? | How can I save water? | How do I stop a nosebleed? |
What helps against a headache? | How can I focus better? | How often should I brush my teeth? |
How do I grow basil? | How do I write a letter of thanks? | Which metal is the heaviest? |
Who invented the telephone? | Who painted The Starry Night? |
In which year did people land on the moon? | What is the highest mountain? |
What is the smallest country? | How many continents are there? | What is the freezing point? |
What is the chemical sign of gold? | How many bones do people have? | What is democracy? |
Explain what inflation is. | What is a loan? | What is evolution? | Why is the sea salty? |
Why do we dream? | How does a car engine work? | How does a battery work? |
What is an adjective? | What is irony? | What is the internet? | What is an atom? |
Invent a superhero. | Write a haiku about snow. | Write a limerick. |
Write a toast for a wedding. | Write a tweet about spring. | List five colors. |
List the days of the week. | Count backwards from ten. | Name two insects. |
Translate 'thank you' into German. | Translate 'I am here' into French. |
Answer with one word: is fire hot? | Correct this: he go home. | What is a bug in a program? |
Write a loop in Java. | Write an HTML page with a title. | What is 12 divided by 4? |
How many seconds are in a minute? | How many sides has a square? | What is ten percent of 200?
"""
EVERYDAY = tuple(text.strip() for text in _EVERYDAY.split("|"))

# What a model answers by itself at some length.
ORDINARY = (
    ("What is a {}?", words.THINGS + words.ANIMALS + words.INSTRUMENTS),
    ("Explain in one sentence what a {} is for.", words.THINGS),
    ("Write two sentences about a {} and a {}.", words.WORDS),
    ("Write a very short story that has a {} in it.", words.WORDS + words.ANIMALS),
    ("Give me three tips for {}.", words.HOBBIES),
    ("Why do people like {}?", words.HOBBIES + words.FOODS + words.DRINKS),
    ("How do I start with {} as a beginner?", words.HOBBIES + words.SUBJECTS),
    ("What does a {} do all day?", words.JOBS),
    ("Is it hard to become a {}?", words.JOBS),
    ("Tell me something about {}.", words.CITIES + words.COUNTRIES + words.LANGUAGES),
    ("What should I see in {}?", words.CITIES + words.COUNTRIES),
    ("What goes well with {}?", words.FOODS + words.DRINKS),
    ("How long does it take to {}?", words.TASKS),
    ("What is the main idea of {}?", words.SUBJECTS),
    ("Which is better, {} or {}?", words.FOODS + words.HOBBIES + words.COLORS),
    ("List three things that are {}.", words.COLORS),
)


def filled(wordings: Wordings, rng: random.Random, count: int) -> list[str]:
    """That many different wordings with their fillers put in."""
    found: dict[str, None] = {}
    while len(found) < count:
        wording, fillers = rng.choice(wordings)
        found[wording.format(*rng.sample(fillers, 2))] = None
    return list(found)
