"""Kinds of facts: what they may be, how they are told, changed and asked for, and the reply.

In a wording ``{s}`` is whom or what it is about, ``{v}`` the value, ``{a}`` "a" or "an" before it.
No wording is one that `deltamem-mlx eval recall` uses.
"""

from typing import NamedTuple

import words


class Relation(NamedTuple):
    """A kind of fact.

    Attributes:
        subjects (tuple[str, ...]): About whom or what; "people" stands for names and relatives.
        values (tuple[str, ...]): What it may be.
        tells (tuple[str, ...]): Wordings that tell it.
        changes (tuple[str, ...]): Wordings that say it is another now.
        asks (tuple[str, ...]): Questions for it.
        reply (str): The answer.
    """

    subjects: tuple[str, ...]
    values: tuple[str, ...]
    tells: tuple[str, ...]
    changes: tuple[str, ...]
    asks: tuple[str, ...]
    reply: str


PEOPLE = ("people",)
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

RELATIONS = (
    Relation(
        PEOPLE,
        words.CITIES,
        (
            "{s} has a house in {v}.",
            "{s} has been living in {v} since last year.",
            "{v} is where {s} lives.",
            "{s} rents a flat in {v}.",
            "The home of {s} is in {v}.",
            "I visited {s} at home in {v}.",
        ),
        (
            "{s} does not live there any more, the new home is in {v}.",
            "{s} has left for {v} and lives there now.",
            "Update: {s} now lives in {v}.",
        ),
        (
            "Where does {s} live?",
            "In which city does {s} live?",
            "Where is the home of {s}?",
            "Do you know what city {s} lives in?",
            "What town is {s} living in?",
        ),
        "{s} lives in {v}.",
    ),
    Relation(
        PEOPLE,
        words.CITIES + words.COUNTRIES,
        (
            "{s} comes from {v}.",
            "{s} grew up in {v}.",
            "{s} spent all of childhood in {v}.",
            "Originally {s} is from {v}.",
        ),
        ("I had that wrong: {s} grew up in {v}.", "No wait, {s} comes from {v}."),
        (
            "Where does {s} come from?",
            "Where did {s} grow up?",
            "What place is {s} from originally?",
        ),
        "{s} comes from {v}.",
    ),
    Relation(
        PEOPLE,
        words.CITIES + words.COUNTRIES,
        (
            "{s} is going to {v} on holiday.",
            "{s} booked a trip to {v}.",
            "Next summer {s} will travel to {v}.",
            "{s} is planning a vacation in {v}.",
        ),
        ("{s} changed the plan and will travel to {v}.", "Now {s} is going to {v} instead."),
        (
            "Where is {s} going on holiday?",
            "Where will {s} travel?",
            "What is the destination of {s}'s trip?",
        ),
        "{s} will travel to {v}.",
    ),
    Relation(
        PEOPLE,
        words.JOBS,
        (
            "{s} is {a} {v} by profession.",
            "{s} found a job as {a} {v}.",
            "{s} is employed as {a} {v}.",
            "Since May {s} has been working as {a} {v}.",
            "{s} makes money as {a} {v}.",
            "{s} trained to be {a} {v} and is one now.",
        ),
        (
            "{s} has a new job: {a} {v}.",
            "{s} is not doing that any longer, but works as {a} {v}.",
            "Update: {s} now works as {a} {v}.",
        ),
        (
            "What is the job of {s}?",
            "What is {s}'s profession?",
            "What does {s} do for a living?",
            "What kind of work does {s} do?",
            "How does {s} earn money?",
        ),
        "{s} is {a} {v}.",
    ),
    Relation(
        PEOPLE,
        words.JOBS,
        (
            "When {s} grows up, it will be as {a} {v}.",
            "{s} dreams of becoming {a} {v}.",
            "{s} wants to be {a} {v} one day.",
        ),
        ("Now {s} would rather become {a} {v}.",),
        ("What does {s} want to become?", "What is the dream job of {s}?"),
        "{s} wants to be {a} {v}.",
    ),
    Relation(
        PEOPLE,
        words.PETS,
        (
            "{s} has a puppy, {v}.",
            "The dog of {s} is {v}.",
            "{s} walks a dog that listens to the name {v}.",
            "{s} adopted a dog whose name is {v}.",
            "{s} takes {v}, the dog, to the park.",
        ),
        ("{s} has another dog now, {v}.", "It turns out the dog of {s} is named {v}."),
        (
            "What is the dog of {s} called?",
            "Which name does {s}'s dog have?",
            "How does {s} call the dog?",
            "What name did {s} give to the dog?",
        ),
        "The dog of {s} is called {v}.",
    ),
    Relation(
        PEOPLE,
        words.PETS,
        (
            "{s} has a cat named {v}.",
            "The cat of {s} is called {v}.",
            "{s} feeds a cat that is called {v}.",
        ),
        ("{s} got another cat, {v}.",),
        ("What is the name of {s}'s cat?", "What is the cat of {s} called?"),
        "The cat of {s} is called {v}.",
    ),
    Relation(
        PEOPLE,
        words.NAMES,
        (
            "{s} is married to {v}.",
            "{v} is the partner of {s}.",
            "{s} got engaged to {v}.",
            "The love of {s} is {v}.",
        ),
        ("{s} is with {v} now.",),
        ("Who is the partner of {s}?", "Who is {s} married to?", "Whom does {s} love?"),
        "The partner of {s} is {v}.",
    ),
    Relation(
        PEOPLE,
        words.NAMES,
        (
            "{s} has a daughter named {v}.",
            "{s} has a child, {v}.",
            "The baby of {s} is called {v}.",
            "{v} is the child of {s}.",
        ),
        ("Correction: the child of {s} is called {v}.",),
        ("What is the name of {s}'s child?", "What is the child of {s} called?"),
        "The child of {s} is called {v}.",
    ),
    Relation(
        PEOPLE,
        words.NAMES,
        (
            "{s} works for {v}.",
            "The boss of {s} is {v}.",
            "{s} has to report to {v}.",
        ),
        ("{s} has a new boss, {v}.",),
        ("Who is the boss of {s}?", "For whom does {s} work?"),
        "The boss of {s} is {v}.",
    ),
    Relation(
        PEOPLE,
        words.INSTRUMENTS,
        (
            "{s} has played the {v} since childhood.",
            "{s} is learning the {v}.",
            "{s} plays the {v} in a band.",
            "{s} got a {v} and plays it all day.",
            "The instrument of {s} is the {v}.",
        ),
        ("{s} now plays the {v}.", "By now {s} has turned to the {v}."),
        (
            "What instrument does {s} play?",
            "Which instrument is {s} learning?",
            "On what instrument does {s} make music?",
        ),
        "{s} plays the {v}.",
    ),
    Relation(
        PEOPLE,
        words.FOODS,
        (
            "The favorite food of {s} is {v}.",
            "{s} likes {v} more than any other food.",
            "{s} is very fond of {v}.",
            "{s} eats {v} whenever possible.",
            "For {s} there is nothing better than {v}.",
            "{s} really enjoys {v}.",
        ),
        ("The new favorite of {s} is {v}.", "By now {s} likes {v} best."),
        (
            "What food does {s} like best?",
            "What does {s} love to eat?",
            "Which food is the favorite of {s}?",
            "What meal would make {s} happy?",
            "What should I cook when {s} comes?",
        ),
        "{s} likes {v}.",
    ),
    Relation(
        PEOPLE,
        words.DRINKS,
        (
            "{s} drinks {v} all the time.",
            "{s} always asks for {v}.",
            "The favorite drink of {s} is {v}.",
            "{s} had a glass of {v} and wants more.",
        ),
        ("Now {s} drinks {v}.",),
        (
            "What does {s} drink?",
            "What is the favorite drink of {s}?",
            "What shall I pour for {s}?",
        ),
        "{s} drinks {v}.",
    ),
    Relation(
        PEOPLE,
        words.ALLERGENS,
        (
            "{s} has a bad allergy: {v}.",
            "{s} gets ill from {v}.",
            "{s} sneezes because of {v}.",
            "The doctor says that {s} cannot have {v}.",
            "Keep {s} away from {v}, it is an allergy.",
        ),
        (
            "The doctor was wrong, {s} is allergic to {v}.",
            "It is not that, the allergy of {s} is {v}.",
        ),
        (
            "What does {s} react to?",
            "What allergy does {s} have?",
            "What is {s}'s allergy?",
            "To what is {s} allergic?",
            "What makes {s} ill?",
        ),
        "{s} is allergic to {v}.",
    ),
    Relation(
        PEOPLE,
        words.COLORS,
        (
            "{s} has {a} {v} car.",
            "The car of {s} is painted {v}.",
            "{s} came in {a} {v} car.",
            "The color of {s}'s car is {v}.",
        ),
        ("The car of {s} is {v} now.", "{s} got a new car in {v}."),
        (
            "What color is the car of {s}?",
            "Which color does {s}'s car have?",
            "What is the color of {s}'s car?",
        ),
        "The car of {s} is {v}.",
    ),
    Relation(
        PEOPLE,
        words.COLORS,
        (
            "The favorite color of {s} is {v}.",
            "{s} likes everything {v}.",
            "{s} thinks {v} is the best color.",
        ),
        ("The favorite color of {s} is {v} by now.",),
        ("What is {s}'s favorite color?", "Which color does {s} like best?"),
        "The favorite color of {s} is {v}.",
    ),
    Relation(
        PEOPLE,
        words.HOBBIES,
        (
            "{s} does {v} in the free hours.",
            "The hobby of {s} is {v}.",
            "{s} loves {v} and does it every week.",
            "After work {s} goes for {v}.",
            "{s} has taken up {v}.",
            "{s} is in a club for {v}.",
        ),
        ("The new hobby of {s} is {v}.", "{s} has changed to {v}."),
        (
            "What is the hobby of {s}?",
            "What does {s} do after work?",
            "What does {s} do for fun?",
            "How does {s} spend free time?",
            "Which hobby does {s} have?",
        ),
        "The hobby of {s} is {v}.",
    ),
    Relation(
        PEOPLE,
        words.MONTHS,
        (
            "The birthday of {s} is in {v}.",
            "{s}'s birthday comes in {v}.",
            "In {v} {s} has a birthday party.",
            "{s} came into the world in {v}.",
        ),
        ("Correction: the birthday of {s} is in {v}.",),
        (
            "When is the birthday of {s}?",
            "In which month was {s} born?",
            "What month is {s}'s birthday in?",
        ),
        "The birthday of {s} is in {v}.",
    ),
    Relation(
        PEOPLE,
        words.NUMBERS,
        (
            "{s} is {v} years old.",
            "{s} turned {v} last week.",
            "The age of {s} is {v}.",
        ),
        ("{s} is already {v}.",),
        ("How old is {s}?", "What is the age of {s}?"),
        "{s} is {v} years old.",
    ),
    Relation(
        PEOPLE,
        words.NUMBERS,
        (
            "{s} is in room {v}.",
            "The room number of {s} is {v}.",
            "{s} wears the number {v}.",
        ),
        ("{s} has the number {v} now.",),
        ("What number does {s} have?", "Which number belongs to {s}?"),
        "{s} has number {v}.",
    ),
    Relation(
        PEOPLE,
        words.LANGUAGES,
        (
            "{s} speaks {v} at home.",
            "{s} is taking {v} lessons.",
            "{s} learned to speak {v}.",
            "The mother tongue of {s} is {v}.",
        ),
        ("Now {s} is learning {v}.",),
        (
            "Which language does {s} speak?",
            "What language did {s} learn?",
            "In what language can I talk to {s}?",
        ),
        "{s} speaks {v}.",
    ),
    Relation(
        PEOPLE,
        words.ANIMALS,
        (
            "{s} keeps {a} {v} as a pet.",
            "The favorite animal of {s} is the {v}.",
            "{s} saw {a} {v} and loved it.",
            "{s} has a picture of {a} {v} on the wall.",
            "{s} is afraid of every {v}.",
        ),
        ("Now it is the {v} that {s} cares about.",),
        ("Which animal goes with {s}?", "What animal is it with {s}?"),
        "With {s} it is the {v}.",
    ),
    Relation(
        PEOPLE,
        words.THINGS,
        (
            "{s} bought {a} {v}.",
            "{s} got {a} {v} yesterday.",
            "{s} ordered {a} {v} from the shop.",
            "In the shop {s} picked {a} {v}.",
        ),
        ("{s} took it back and bought {a} {v} instead.",),
        ("What did {s} buy?", "What has {s} bought?", "What did {s} get in the shop?"),
        "{s} bought {a} {v}.",
    ),
    Relation(
        PEOPLE,
        words.THINGS,
        (
            "{s} would like {a} {v} for Christmas.",
            "{s} wishes for {a} {v}.",
            "We should give {s} {a} {v}.",
            "A good gift for {s} is {a} {v}.",
        ),
        ("{s} would rather have {a} {v}.",),
        (
            "What does {s} wish for?",
            "What gift would {s} like?",
            "What should I give {s} as a present?",
        ),
        "{s} wishes for {a} {v}.",
    ),
    Relation(
        PEOPLE,
        words.THINGS,
        (
            "{s} lost {a} {v}.",
            "{s} is looking for {a} {v}.",
            "{s} cannot find the {v}.",
        ),
        ("{s} found that, but now the {v} is lost.",),
        ("What did {s} lose?", "What is {s} looking for?"),
        "{s} lost the {v}.",
    ),
    Relation(
        PEOPLE,
        words.THINGS,
        (
            "{s} broke the {v}.",
            "{s} is repairing the {v}.",
            "The {v} of {s} is broken.",
        ),
        ("That works again, but now the {v} of {s} is broken.",),
        ("What did {s} break?", "What of {s} is broken?"),
        "The {v} of {s} is broken.",
    ),
    Relation(
        PEOPLE,
        words.SUBJECTS,
        (
            "{s} studies {v}.",
            "{s} has a degree in {v}.",
            "{s} reads a lot about {v}.",
            "At school {s} was best in {v}.",
        ),
        ("{s} has changed to {v}.",),
        ("What does {s} study?", "Which subject is {s} good at?"),
        "{s} studies {v}.",
    ),
    Relation(
        PEOPLE,
        words.TASKS,
        (
            "{s} has to {v}.",
            "{s} must not forget to {v}.",
            "Remind {s} to {v}.",
            "{s} promised to {v}.",
        ),
        ("That is done, now {s} has to {v}.",),
        ("What does {s} have to do?", "What is on {s}'s list?", "What did {s} promise?"),
        "{s} has to {v}.",
    ),
    Relation(
        PEOPLE,
        words.WORDS,
        (
            "{s} wrote a story about {a} {v}.",
            "{s} dreamed of {a} {v}.",
            "{s} drew {a} {v}.",
            "{s} talks about the {v} all the time.",
        ),
        ("Now {s} talks about {a} {v}.",),
        ("What is {s} thinking of?", "What is on the mind of {s}?"),
        "{s} is thinking of the {v}.",
    ),
    Relation(
        PEOPLE,
        words.WORDS,
        (
            "The nickname of {s} is {v}.",
            "Everybody calls {s} {v}.",
            "Friends call {s} {v}.",
        ),
        ("By now everybody calls {s} {v}.",),
        ("What is the nickname of {s}?", "What do friends call {s}?"),
        "The nickname of {s} is {v}.",
    ),
    Relation(
        BOXES,
        words.THINGS + words.WORDS,
        (
            "There is {a} {v} in {s}.",
            "I put {a} {v} into {s}.",
            "In {s} you find {a} {v}.",
            "{s} holds {a} {v}.",
        ),
        ("I took that out, now {a} {v} is in {s}.",),
        ("What is in {s}?", "What did I put into {s}?", "What does {s} hold?"),
        "In {s} there is {a} {v}.",
    ),
    Relation(
        CODES,
        words.WORDS + words.THINGS,
        (
            "{s} is {v}.",
            "Remember: {s} is {v}.",
            "They chose {v} as {s}.",
            "For {s} we picked {v}.",
        ),
        ("{s} was changed to {v}.", "From today {s} is {v}."),
        ("What is {s}?", "Please tell me {s}.", "Do you remember {s}?"),
        "{s} is {v}.",
    ),
    Relation(
        OBJECTS,
        tuple(f"in the {place}" for place in words.PLACES),
        (
            "I left {s} {v}.",
            "You find {s} {v}.",
            "I put {s} {v}.",
            "I saw {s} {v}.",
        ),
        ("I moved {s}, look {v}.",),
        ("Where can I find {s}?", "Where did I leave {s}?", "Where should I look for {s}?"),
        "You find {s} {v}.",
    ),
    Relation(
        EVENTS,
        tuple(f"on {day}" for day in words.DAYS)
        + tuple(f"in {month}" for month in words.MONTHS)
        + tuple(f"at {time}" for time in words.TIMES),
        (
            "{s} is {v}.",
            "We have {s} {v}.",
            "{s} takes place {v}.",
            "Come to {s} {v}.",
        ),
        ("{s} has been moved, it is {v}.",),
        ("When is {s}?", "When does {s} take place?", "For when is {s} planned?"),
        "{s} is {v}.",
    ),
    Relation(
        EVENTS,
        tuple(f"in {city}" for city in words.CITIES)
        + tuple(f"in the {place}" for place in words.PLACES),
        (
            "We meet for {s} {v}.",
            "The place of {s} is {v}.",
            "{s} will be held {v}.",
        ),
        ("{s} will be somewhere else, {v}.",),
        ("Where is {s}?", "In what place is {s}?", "Where do we meet for {s}?"),
        "{s} is {v}.",
    ),
)
