"""What `facts` says: people, kinds of facts with their wordings, and talk that tells nothing."""

from typing import NamedTuple


def _values(text: str) -> tuple[str, ...]:
    return tuple(value.strip() for value in text.split(","))


PEOPLE = _values(
    "Maria, Oscar, Priya, Daniel, Aisha, Tomás, Ingrid, Kenji, Fatima, Luca, Chloe, Samuel, Nadia, "
    "Victor, Elena, Marcus, Yuki, Hannah, Diego, Leila, Patrick, Sofia, Andre, Miriam, Felix, "
    "Zainab, Gareth, Olivia, Ravi, Clara"
)


class Relation(NamedTuple):
    """A kind of fact: ``{s}`` is whom it is about, ``{v}`` the value.

    Attributes:
        values (tuple[str, ...]): What it may be.
        tells (tuple[str, ...]): Wordings that tell it.
        changes (tuple[str, ...]): Wordings that say it is another now.
        asks (tuple[str, ...]): Questions for it.
    """

    values: tuple[str, ...]
    tells: tuple[str, ...]
    changes: tuple[str, ...]
    asks: tuple[str, ...]


RELATIONS = (
    Relation(
        _values(
            "Lisbon, Toronto, Nairobi, Oslo, Santiago, Dublin, Kyoto, Prague, Melbourne, Warsaw, "
            "Denver, Athens, Montreal, Glasgow, Bangkok, Vienna"
        ),
        (
            "{s} lives in {v}.",
            "{s} has an apartment in {v}.",
            "By the way, {s} is based in {v}.",
            "{s} settled down in {v} a few years ago.",
        ),
        ("Actually, {s} moved to {v}.", "News: {s} has just relocated to {v}."),
        (
            "Which city is {s}'s home?",
            "Where does {s} live now?",
            "In what city would I find {s} at home?",
        ),
    ),
    Relation(
        _values(
            "nurse, carpenter, journalist, pilot, chemist, baker, lawyer, plumber, translator, "
            "dentist, firefighter, surgeon, librarian, welder, butcher, florist"
        ),
        (
            "{s} works as a {v}.",
            "{s} earns a living as a {v}.",
            "You should know that {s} is a {v}.",
            "I heard {s} has been a {v} for years.",
        ),
        ("Actually, {s} changed careers and is a {v} now.", "{s} quit and became a {v}."),
        ("What is {s}'s job?", "What does {s} do for work?", "What profession does {s} have?"),
    ),
    Relation(
        _values(
            "Biscuit, Rocket, Pepper, Shadow, Waffles, Luna, Ziggy, Mocha, Bandit, Clover, "
            "Pickles, Nugget, Domino, Olive, Rusty, Tofu"
        ),
        (
            "{s} has a dog named {v}.",
            "{s}'s dog is called {v}.",
            "{s} got a dog and called it {v}.",
            "{v} is the dog that belongs to {s}.",
        ),
        (
            "Actually, {s} renamed the dog: it answers to {v} now.",
            "I was wrong, {s}'s dog is {v}.",
        ),
        (
            "What is the name of {s}'s dog?",
            "What is {s}'s dog called?",
            "What did {s} name the dog?",
        ),
    ),
    Relation(
        _values(
            "violin, trumpet, harp, bassoon, flute, accordion, cello, banjo, saxophone, ukulele, "
            "piano, clarinet, guitar, trombone, oboe, harmonica"
        ),
        (
            "{s} plays the {v}.",
            "{s} practises the {v} every evening.",
            "{s} takes {v} lessons on Tuesdays.",
            "{s} is really good at the {v}.",
        ),
        ("Actually, {s} switched to the {v}.", "{s} gave that up and took up the {v} instead."),
        (
            "Which musical instrument does {s} play?",
            "What instrument would {s} bring to a concert?",
            "What instrument can {s} play?",
        ),
    ),
    Relation(
        _values(
            "lasagna, sushi, curry, ramen, paella, falafel, risotto, goulash, pizza, hummus, "
            "gnocchi, kebab, chili, couscous, sauerkraut, pho"
        ),
        (
            "{s} loves {v}.",
            "{s} could eat {v} every single day.",
            "Nothing makes {s} happier than {v}.",
            "{s} always orders {v}.",
        ),
        ("Actually, {s} prefers {v} these days.", "{s} has gone off that and now adores {v}."),
        (
            "What is {s}'s favorite food?",
            "Which dish should I cook for {s}?",
            "What does {s} like to eat most?",
        ),
    ),
    Relation(
        _values(
            "shellfish, pollen, milk, wheat, soy, latex, mustard, sesame, penicillin, dust, "
            "wool, celery, garlic, aspirin, cinnamon, corn"
        ),
        (
            "{s} is allergic to {v}.",
            "{s} has an allergy to {v}.",
            "Careful, {s} gets a rash from {v}.",
            "{s} has to stay away from {v} for medical reasons.",
        ),
        (
            "Correction: {s} cannot tolerate {v}, that was the problem all along.",
            "The new test says {s} reacts to {v} instead.",
        ),
        (
            "What is {s} allergic to?",
            "Which allergy does {s} have?",
            "What must {s} avoid because of an allergy?",
        ),
    ),
    Relation(
        _values(
            "red, green, yellow, maroon, purple, silver, black, white, brown, turquoise, pink, "
            "beige, gold, navy, crimson, bronze"
        ),
        (
            "{s} drives a {v} car.",
            "{s} bought a {v} car.",
            "The car that {s} owns is {v}.",
            "You can spot {s} by the {v} car.",
        ),
        (
            "Actually, {s} had the car repainted in {v}.",
            "{s} sold that one and the car is {v} now.",
        ),
        (
            "What color is {s}'s car?",
            "I am looking for {s}'s car. What color does it have?",
            "Which color did {s} choose for the car?",
        ),
    ),
    Relation(
        _values(
            "January, February, March, April, May, June, July, August, September, October, "
            "November, December"
        ),
        (
            "{s} was born in {v}.",
            "{s} celebrates a birthday in {v}.",
            "{s} turns a year older every {v}.",
            "The whole family brings {s} cake in {v}.",
        ),
        (
            "Sorry, I mixed that up: {s}'s birthday falls in {v}.",
            "I got that wrong, {s} has a birthday in {v}.",
        ),
        (
            "In which month is {s}'s birthday?",
            "When does {s} have a birthday?",
            "In what month should I send {s} a birthday card?",
        ),
    ),
    Relation(
        _values(
            "chess, archery, pottery, fencing, knitting, sailing, judo, birdwatching, karate, "
            "gardening, surfing, origami, cycling, rowing, astronomy, skiing"
        ),
        (
            "{s} spends every weekend on {v}.",
            "{s} is crazy about {v}.",
            "{s} signed up for {v}.",
            "In spare time, {s} goes in for {v}.",
        ),
        ("Actually, {s} dropped that for {v}.", "{s} has a new passion now: {v}."),
        (
            "What is {s}'s hobby?",
            "What does {s} like to do in free time?",
            "Which pastime does {s} enjoy?",
        ),
    ),
)

ACKNOWLEDGEMENTS = (
    "Got it.",
    "Thanks for telling me.",
    "Okay, noted.",
    "Good to know.",
    "I will keep that in mind.",
    "Understood.",
)

CHATS = (
    ("Hello! How are you today?", "Hello! I am doing well, thank you. How can I help?"),
    ("It has been raining all morning.", "That sounds like a good day to stay inside."),
    ("What is two plus two?", "Two plus two is four."),
    ("Tell me something about the moon.", "The moon always shows us the same side."),
    ("I slept badly last night.", "I am sorry to hear that. I hope tonight is better."),
    ("Can you keep an answer short?", "Yes, I can."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("I should drink more water.", "That is a good habit. Keep a bottle near you."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("The train was late again.", "That is annoying. I hope you did not miss anything."),
    ("Do you ever get bored?", "I do not get bored, I am a program."),
    ("Name a shape with three sides.", "A triangle has three sides."),
    ("I finally cleaned the kitchen.", "Well done! That must feel good."),
    ("Is the sun a star?", "Yes, the sun is a star."),
    ("I forgot what I wanted to say.", "No problem, take your time."),
    ("Which is larger, an ant or an elephant?", "An elephant is much larger than an ant."),
    ("My phone battery is almost empty.", "You may want to charge it soon."),
    ("What do bees make?", "Bees make wax and store sweet food for the winter."),
    ("It is getting late.", "Then it may be time to rest."),
    ("How do I boil an egg?", "Put it in boiling water for about eight minutes."),
    ("I like quiet mornings.", "Quiet mornings are a nice start to the day."),
    ("What comes after the letter C?", "The letter D comes after C."),
    ("Thanks for your help so far.", "You are welcome."),
    ("Is water wet?", "Most people would say that it is."),
    ("I need a break.", "Take a few minutes for yourself."),
    ("Can fish breathe air?", "Most fish take oxygen from water with their gills."),
    ("That was a long meeting.", "I hope it was worth the time."),
    ("What is a synonym of big?", "A synonym of big is large."),
    ("I am thinking about lunch.", "I hope it will be a good one."),
    ("Let us talk about something else.", "Sure. What would you like to talk about?"),
    ("How far away is the horizon?", "A few kilometers, if you stand at the sea."),
    ("I have a lot to do this week.", "It can help to write a list."),
)
