"""Facts about people: where they live, what they do, whom they know, what they like.

No wording is one that `deltamem-mlx eval recall` uses.
"""

from . import words
from .kinds import PEOPLE, kind

ABOUT_PEOPLE = (
    kind(
        PEOPLE,
        words.CITIES,
        tells=(
            "{s} has a house in {v}. | {s} has been living in {v} since last year. | {v} is "
            "where {s} lives. | {s} rents a flat in {v}. | The home of {s} is in {v}. | I "
            "visited {s} at home in {v}."
        ),
        changes=(
            "{s} does not live there any more, the new home is in {v}. | {s} has left for {v} "
            "and lives there now. | Update: {s} now lives in {v}."
        ),
        asks=(
            "Where does {s} live? | In which city does {s} live? | Where is the home of {s}? "
            "| Do you know what city {s} lives in? | What town is {s} living in?"
        ),
        reply="{s} lives in {v}.",
    ),
    kind(
        PEOPLE,
        words.CITIES + words.COUNTRIES,
        tells=(
            "{s} comes from {v}. | {s} grew up in {v}. | {s} spent all of childhood in {v}. | "
            "Originally {s} is from {v}."
        ),
        changes="I had that wrong: {s} grew up in {v}. | No wait, {s} comes from {v}.",
        asks=(
            "Where does {s} come from? | Where did {s} grow up? | What place is {s} from "
            "originally?"
        ),
        reply="{s} comes from {v}.",
    ),
    kind(
        PEOPLE,
        words.CITIES + words.COUNTRIES,
        tells=(
            "{s} is going to {v} on holiday. | {s} booked a trip to {v}. | Next summer {s} "
            "will travel to {v}. | {s} is planning a vacation in {v}."
        ),
        changes="{s} changed the plan and will travel to {v}. | Now {s} is going to {v} instead.",
        asks=(
            "Where is {s} going on holiday? | Where will {s} travel? | What is the "
            "destination of {s}'s trip?"
        ),
        reply="{s} will travel to {v}.",
    ),
    kind(
        PEOPLE,
        words.JOBS,
        tells=(
            "{s} is {a} {v} by profession. | {s} found a job as {a} {v}. | {s} is employed as "
            "{a} {v}. | Since May {s} has been working as {a} {v}. | {s} makes money as {a} "
            "{v}. | {s} trained to be {a} {v} and is one now."
        ),
        changes=(
            "{s} has a new job: {a} {v}. | {s} is not doing that any longer, but works as {a} "
            "{v}. | Update: {s} now works as {a} {v}."
        ),
        asks=(
            "What is the job of {s}? | What is {s}'s profession? | What does {s} do for a "
            "living? | What kind of work does {s} do? | How does {s} earn money?"
        ),
        reply="{s} is {a} {v}.",
    ),
    kind(
        PEOPLE,
        words.JOBS,
        tells=(
            "When {s} grows up, it will be as {a} {v}. | {s} dreams of becoming {a} {v}. | "
            "{s} wants to be {a} {v} one day."
        ),
        changes="Now {s} would rather become {a} {v}.",
        asks="What does {s} want to become? | What is the dream job of {s}?",
        reply="{s} wants to be {a} {v}.",
    ),
    kind(
        PEOPLE,
        words.PETS,
        tells=(
            "{s} has a puppy, {v}. | The dog of {s} is {v}. | {s} walks a dog that listens to "
            "the name {v}. | {s} adopted a dog whose name is {v}. | {s} takes {v}, the dog, "
            "to the park."
        ),
        changes="{s} has another dog now, {v}. | It turns out the dog of {s} is named {v}.",
        asks=(
            "What is the dog of {s} called? | Which name does {s}'s dog have? | How does {s} "
            "call the dog? | What name did {s} give to the dog?"
        ),
        reply="The dog of {s} is called {v}.",
    ),
    kind(
        PEOPLE,
        words.PETS,
        tells=(
            "{s} has a cat named {v}. | The cat of {s} is called {v}. | {s} feeds a cat that "
            "is called {v}."
        ),
        changes="{s} got another cat, {v}.",
        asks="What is the name of {s}'s cat? | What is the cat of {s} called?",
        reply="The cat of {s} is called {v}.",
    ),
    kind(
        PEOPLE,
        words.NAMES,
        tells=(
            "{s} is married to {v}. | {v} is the partner of {s}. | {s} got engaged to {v}. | "
            "The love of {s} is {v}."
        ),
        changes="{s} is with {v} now.",
        asks="Who is the partner of {s}? | Who is {s} married to? | Whom does {s} love?",
        reply="The partner of {s} is {v}.",
    ),
    kind(
        PEOPLE,
        words.NAMES,
        tells=(
            "{s} has a daughter named {v}. | {s} has a child, {v}. | The baby of {s} is "
            "called {v}. | {v} is the child of {s}."
        ),
        changes="Correction: the child of {s} is called {v}.",
        asks="What is the name of {s}'s child? | What is the child of {s} called?",
        reply="The child of {s} is called {v}.",
    ),
    kind(
        PEOPLE,
        words.NAMES,
        tells="{s} works for {v}. | The boss of {s} is {v}. | {s} has to report to {v}.",
        changes="{s} has a new boss, {v}.",
        asks="Who is the boss of {s}? | For whom does {s} work?",
        reply="The boss of {s} is {v}.",
    ),
    kind(
        PEOPLE,
        words.INSTRUMENTS,
        tells=(
            "{s} has played the {v} since childhood. | {s} is learning the {v}. | {s} plays "
            "the {v} in a band. | {s} got a {v} and plays it all day. | The instrument of {s} "
            "is the {v}."
        ),
        changes="{s} now plays the {v}. | By now {s} has turned to the {v}.",
        asks=(
            "What instrument does {s} play? | Which instrument is {s} learning? | On what "
            "instrument does {s} make music?"
        ),
        reply="{s} plays the {v}.",
    ),
    kind(
        PEOPLE,
        words.FOODS,
        tells=(
            "The favorite food of {s} is {v}. | {s} likes {v} more than any other food. | {s} "
            "is very fond of {v}. | {s} eats {v} whenever possible. | For {s} there is "
            "nothing better than {v}. | {s} really enjoys {v}."
        ),
        changes="The new favorite of {s} is {v}. | By now {s} likes {v} best.",
        asks=(
            "What food does {s} like best? | What does {s} love to eat? | Which food is the "
            "favorite of {s}? | What meal would make {s} happy? | What should I cook when {s} "
            "comes?"
        ),
        reply="{s} likes {v}.",
    ),
    kind(
        PEOPLE,
        words.DRINKS,
        tells=(
            "{s} drinks {v} all the time. | {s} always asks for {v}. | The favorite drink of "
            "{s} is {v}. | {s} had a glass of {v} and wants more."
        ),
        changes="Now {s} drinks {v}.",
        asks=(
            "What does {s} drink? | What is the favorite drink of {s}? | What shall I pour for {s}?"
        ),
        reply="{s} drinks {v}.",
    ),
    kind(
        PEOPLE,
        words.ALLERGENS,
        tells=(
            "{s} has a bad allergy: {v}. | {s} gets ill from {v}. | {s} sneezes because of "
            "{v}. | The doctor says that {s} cannot have {v}. | Keep {s} away from {v}, it is "
            "an allergy."
        ),
        changes=(
            "The doctor was wrong, {s} is allergic to {v}. | It is not that, the allergy of "
            "{s} is {v}."
        ),
        asks=(
            "What does {s} react to? | What allergy does {s} have? | What is {s}'s allergy? | "
            "To what is {s} allergic? | What makes {s} ill?"
        ),
        reply="{s} is allergic to {v}.",
    ),
    kind(
        PEOPLE,
        words.COLORS,
        tells=(
            "{s} has {a} {v} car. | The car of {s} is painted {v}. | {s} came in {a} {v} car. "
            "| The color of {s}'s car is {v}."
        ),
        changes="The car of {s} is {v} now. | {s} got a new car in {v}.",
        asks=(
            "What color is the car of {s}? | Which color does {s}'s car have? | What is the "
            "color of {s}'s car?"
        ),
        reply="The car of {s} is {v}.",
    ),
    kind(
        PEOPLE,
        words.COLORS,
        tells=(
            "The favorite color of {s} is {v}. | {s} likes everything {v}. | {s} thinks {v} "
            "is the best color."
        ),
        changes="The favorite color of {s} is {v} by now.",
        asks="What is {s}'s favorite color? | Which color does {s} like best?",
        reply="The favorite color of {s} is {v}.",
    ),
    kind(
        PEOPLE,
        words.HOBBIES,
        tells=(
            "{s} does {v} in the free hours. | The hobby of {s} is {v}. | {s} loves {v} and "
            "does it every week. | After work {s} goes for {v}. | {s} has taken up {v}. | {s} "
            "is in a club for {v}."
        ),
        changes="The new hobby of {s} is {v}. | {s} has changed to {v}.",
        asks=(
            "What is the hobby of {s}? | What does {s} do after work? | What does {s} do for "
            "fun? | How does {s} spend free time? | Which hobby does {s} have?"
        ),
        reply="The hobby of {s} is {v}.",
    ),
    kind(
        PEOPLE,
        words.MONTHS,
        tells=(
            "The birthday of {s} is in {v}. | {s}'s birthday comes in {v}. | In {v} {s} has a "
            "birthday party. | {s} came into the world in {v}."
        ),
        changes="Correction: the birthday of {s} is in {v}.",
        asks=(
            "When is the birthday of {s}? | In which month was {s} born? | What month is "
            "{s}'s birthday in?"
        ),
        reply="The birthday of {s} is in {v}.",
    ),
    kind(
        PEOPLE,
        words.NUMBERS,
        tells="{s} is {v} years old. | {s} turned {v} last week. | The age of {s} is {v}.",
        changes="{s} is already {v}.",
        asks="How old is {s}? | What is the age of {s}?",
        reply="{s} is {v} years old.",
    ),
    kind(
        PEOPLE,
        words.NUMBERS,
        tells="{s} is in room {v}. | The room number of {s} is {v}. | {s} wears the number {v}.",
        changes="{s} has the number {v} now.",
        asks="What number does {s} have? | Which number belongs to {s}?",
        reply="{s} has number {v}.",
    ),
)
