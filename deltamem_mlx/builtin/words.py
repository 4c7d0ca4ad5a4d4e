"""The words and wordings of the built-in pair's little language.

Subjects (people, animals, things) have values (cities, jobs, instruments, foods, names, colours).
Held out of all training: the last ``WordClass.held`` words of a class, the last wording of every
list, and one in five of the subject-value pairs.
"""

import zlib
from dataclasses import dataclass

UNKNOWN = "..."  # said in the value's place, before "i do not know ."


@dataclass(frozen=True)
class WordClass:
    """A class of words; the last ``held`` of them are held out of all training."""

    text: str
    held: int

    def all(self) -> list[str]:
        return self.text.split()

    def pick(self, heldout: bool) -> list[str]:
        words = self.all()
        return words[-self.held :] if heldout else words[: -self.held]


PEOPLE = WordClass(
    "anna ben carla david emma felix greta hugo ines jonas karin leo maria nils olga paul "
    "rita simon tara viktor wanda yusuf zoe adam bella chris dora erik fiona georg hanna ivan "
    "julia kofi lena marco nora omar petra quentin rosa sven tom ulla vera willi xenia yara",
    8,
)
ANIMALS = WordClass(
    "dog cat horse parrot rabbit goat pony turtle hamster cow pig duck",
    2,
)
THINGS = WordClass(
    "door car bike hat boat house coat kitchen fence tent chair lamp table bag phone sofa",
    2,
)
CITIES = WordClass(
    "oslo paris rome london berlin madrid vienna prague lisbon dublin athens warsaw tokyo "
    "cairo delhi lima boston chicago sydney nairobi hamburg geneva milan porto",
    4,
)
JOBS = WordClass(
    "baker doctor teacher nurse pilot farmer lawyer cook painter singer writer builder driver "
    "sailor judge dentist gardener plumber tailor waiter miner potter vet barber",
    4,
)
INSTRUMENTS = WordClass(
    "piano violin flute guitar drums cello harp trumpet organ banjo tuba oboe clarinet viola "
    "lute horn bass fiddle recorder zither bagpipe whistle ukulele gong",
    4,
)
FOODS = WordClass(
    "soup pizza rice pasta bread cheese apples fish salad cake honey beans eggs noodles "
    "grapes curry olives plums toast corn figs nuts cherries tofu",
    4,
)
PET_NAMES = WordClass(
    "rex bello luna max rocky misty coco bruno daisy shadow pepper ginger lucky snowy tiger "
    "biscuit sparky oscar molly fluffy ziggy pongo nemo pixel",
    4,
)
COLOURS = WordClass(
    "red blue green yellow black white brown grey pink purple orange gold silver beige violet "
    "turquoise cream scarlet navy olive crimson amber teal ivory",
    4,
)


@dataclass(frozen=True)
class LittleRelation:
    """How a kind of fact is told, asked and answered; the last wording of each list is held out."""

    subjects: WordClass
    values: WordClass
    tells: tuple[str, ...]
    asks: tuple[str, ...]
    answer: str


RELATIONS = (
    LittleRelation(
        PEOPLE,
        CITIES,
        (
            "{s} lives in {v}",
            "{s} moved to {v}",
            "the home of {s} is {v}",
            "{s} is from {v}",
            "the city of {s} is {v}",
        ),
        (
            "where does {s} live ?",
            "in which city is {s} ?",
            "do you know where {s} lives ?",
            "which city does {s} live in ?",
        ),
        "{s} lives in {v} .",
    ),
    LittleRelation(
        PEOPLE,
        JOBS,
        (
            "{s} is a {v}",
            "{s} works as a {v}",
            "the job of {s} is {v}",
            "{s} became a {v}",
            "{s} now is a {v}",
        ),
        (
            "what does {s} do ?",
            "what is the job of {s} ?",
            "what does {s} work as ?",
            "do you know the job of {s} ?",
        ),
        "{s} is a {v} .",
    ),
    LittleRelation(
        PEOPLE,
        INSTRUMENTS,
        (
            "{s} plays the {v}",
            "{s} plays {v}",
            "{s} practises the {v}",
            "{s} is learning the {v}",
            "{s} likes to play {v}",
        ),
        (
            "what does {s} play ?",
            "which instrument does {s} play ?",
            "what is the instrument of {s} ?",
            "do you know what {s} plays ?",
        ),
        "{s} plays the {v} .",
    ),
    LittleRelation(
        PEOPLE,
        FOODS,
        (
            "{s} likes {v}",
            "{s} loves to eat {v}",
            "{s} often eats {v}",
            "{s} always wants {v}",
            "{s} often wants {v}",
        ),
        (
            "what does {s} like ?",
            "what does {s} like to eat ?",
            "which food does {s} like ?",
            "do you know what {s} likes ?",
        ),
        "{s} likes {v} .",
    ),
    LittleRelation(
        ANIMALS,
        PET_NAMES,
        (
            "my {s} is called {v}",
            "i call my {s} {v}",
            "i named my {s} {v}",
            "my {s} has the name {v}",
            "the name of my {s} is {v}",
        ),
        (
            "what is my {s} called ?",
            "what do i call my {s} ?",
            "what is the name of my {s} ?",
            "do you know what my {s} is called ?",
        ),
        "your {s} is called {v} .",
    ),
    LittleRelation(
        THINGS,
        COLOURS,
        (
            "my {s} is {v}",
            "i painted my {s} {v}",
            "my {s} looks {v}",
            "i have my {s} in {v}",
            "the colour of my {s} is {v}",
        ),
        (
            "what colour is my {s} ?",
            "which colour does my {s} have ?",
            "what is the colour of my {s} ?",
            "do you know what colour my {s} is ?",
        ),
        "your {s} is {v} .",
    ),
)
OPENERS = ("", "", "", "", "by the way ,", "you know ,", "i heard that", "well ,")
CHANGES = ("actually ,", "no ,", "now", "that changed :", "not any more :")
ACKS = (
    "ok .",
    "noted .",
    "i see .",
    "good to know .",
    "thanks , i will remember that .",
    "all right .",
)
CHATS = (
    ("how are you ?", "i am fine , thanks ."),
    ("the weather is nice today .", "yes , it is ."),
    ("tell me a joke .", "sorry , i know no jokes ."),
    ("i am a bit tired .", "then have a rest ."),
    ("good morning !", "good morning !"),
    ("it was a long day .", "i hope it was a good day ."),
    ("can you help me ?", "yes , tell me what you want ."),
    ("thanks for the help !", "you are welcome ."),
    ("i have to go to work now .", "have a good time ."),
    ("did you sleep well ?", "i do not sleep ."),
    ("who are you ?", "i am a small model with a memory ."),
    ("hello !", "hello , how are you ?"),
)


def is_test_pair(relation: LittleRelation, subject: str, value: str) -> bool:
    """True for the one in five subject-value pairs that training never shows."""
    return (zlib.crc32(subject.encode()) + relation.values.all().index(value)) % 5 == 0
