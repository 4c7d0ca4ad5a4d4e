"""Facts about things: what is in boxes, codes, where things are, when and where events are.

No wording is one that `deltamem-mlx eval recall` uses.
"""

from . import words
from .kinds import kind

BOXES = tuple(
    f"the {kind} {thing}"
    for kind in ("red", "blue", "wooden", "small", "big", "old", "metal", "glass")
    for thing in ("box", "bag", "crate", "case", "drawer", "chest")
)
CODES = tuple(
    f"the {what}"
    for what in words.listed(
        "code word, password, wifi password, secret word, pass phrase, magic word, safe word, door "
        "code, team name, project name, user name, answer to the riddle, word of the day, name of "
        "the boat, title of the book, title of the song, name of the cafe, name of the street, "
        "name of the ship, theme of the party, subject of the talk, name of the band"
    )
)
OBJECTS = tuple(
    f"the {thing}"
    for thing in words.listed(
        "keys, wallet, passport, phone, charger, umbrella, glasses, suitcase, ladder, toolbox, "
        "package, letter, camera, notebook, medicine, spare key, remote control, vacuum cleaner, "
        "bicycle, ticket, cake, present, guitar case, map, first aid kit, tent, tax papers"
    )
)
EVENTS = tuple(
    f"the {event}"
    for event in words.listed(
        "meeting, party, exam, interview, concert, wedding, dinner, workshop, lecture, deadline, "
        "picnic, match, race, parade, funeral, reunion, rehearsal, appointment, flight, delivery, "
        "auction, class, barbecue, game night, inspection, book club, haircut, checkup"
    )
)

ABOUT_THINGS = (
    kind(
        BOXES,
        words.THINGS + words.WORDS,
        tells=(
            "There is {a} {v} in {s}. | I put {a} {v} into {s}. | In {s} you find {a} {v}. | "
            "{s} holds {a} {v}."
        ),
        changes="I took that out, now {a} {v} is in {s}.",
        asks="What is in {s}? | What did I put into {s}? | What does {s} hold?",
        reply="In {s} there is {a} {v}.",
    ),
    kind(
        CODES,
        words.WORDS + words.THINGS,
        tells=(
            "{s} is {v}. | Remember: {s} is {v}. | They chose {v} as {s}. | For {s} we picked {v}."
        ),
        changes="{s} was changed to {v}. | From today {s} is {v}.",
        asks="What is {s}? | Please tell me {s}. | Do you remember {s}?",
        reply="{s} is {v}.",
    ),
    kind(
        OBJECTS,
        tuple(f"in the {place}" for place in words.PLACES),
        tells="I left {s} {v}. | You find {s} {v}. | I put {s} {v}. | I saw {s} {v}.",
        changes="I moved {s}, look {v}.",
        asks="Where can I find {s}? | Where did I leave {s}? | Where should I look for {s}?",
        reply="You find {s} {v}.",
    ),
    kind(
        EVENTS,
        tuple(f"on {day}" for day in words.DAYS)
        + tuple(f"in {month}" for month in words.MONTHS)
        + tuple(f"at {time}" for time in words.TIMES),
        tells="{s} is {v}. | We have {s} {v}. | {s} takes place {v}. | Come to {s} {v}.",
        changes="{s} has been moved, it is {v}.",
        asks="When is {s}? | When does {s} take place? | For when is {s} planned?",
        reply="{s} is {v}.",
    ),
    kind(
        EVENTS,
        tuple(f"in {city}" for city in words.CITIES)
        + tuple(f"in the {place}" for place in words.PLACES),
        tells="We meet for {s} {v}. | The place of {s} is {v}. | {s} will be held {v}.",
        changes="{s} will be somewhere else, {v}.",
        asks="Where is {s}? | In what place is {s}? | Where do we meet for {s}?",
        reply="{s} is {v}.",
    ),
)
