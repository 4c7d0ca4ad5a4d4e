"""Facts about what people have, want, lose, study, have to do and think of.

No wording is one that `deltamem-mlx eval recall` uses.
"""

from . import words
from .kinds import PEOPLE, kind

ABOUT_BELONGINGS = (
    kind(
        PEOPLE,
        words.LANGUAGES,
        tells=(
            "{s} speaks {v} at home. | {s} is taking {v} lessons. | {s} learned to speak {v}. "
            "| The mother tongue of {s} is {v}."
        ),
        changes="Now {s} is learning {v}.",
        asks=(
            "Which language does {s} speak? | What language did {s} learn? | In what language "
            "can I talk to {s}?"
        ),
        reply="{s} speaks {v}.",
    ),
    kind(
        PEOPLE,
        words.ANIMALS,
        tells=(
            "{s} keeps {a} {v} as a pet. | The favorite animal of {s} is the {v}. | {s} saw "
            "{a} {v} and loved it. | {s} has a picture of {a} {v} on the wall. | {s} is "
            "afraid of every {v}."
        ),
        changes="Now it is the {v} that {s} cares about.",
        asks="Which animal goes with {s}? | What animal is it with {s}?",
        reply="With {s} it is the {v}.",
    ),
    kind(
        PEOPLE,
        words.THINGS,
        tells=(
            "{s} bought {a} {v}. | {s} got {a} {v} yesterday. | {s} ordered {a} {v} from the "
            "shop. | In the shop {s} picked {a} {v}."
        ),
        changes="{s} took it back and bought {a} {v} instead.",
        asks="What did {s} buy? | What has {s} bought? | What did {s} get in the shop?",
        reply="{s} bought {a} {v}.",
    ),
    kind(
        PEOPLE,
        words.THINGS,
        tells=(
            "{s} would like {a} {v} for Christmas. | {s} wishes for {a} {v}. | We should give "
            "{s} {a} {v}. | A good gift for {s} is {a} {v}."
        ),
        changes="{s} would rather have {a} {v}.",
        asks=(
            "What does {s} wish for? | What gift would {s} like? | What should I give {s} as "
            "a present?"
        ),
        reply="{s} wishes for {a} {v}.",
    ),
    kind(
        PEOPLE,
        words.THINGS,
        tells="{s} lost {a} {v}. | {s} is looking for {a} {v}. | {s} cannot find the {v}.",
        changes="{s} found that, but now the {v} is lost.",
        asks="What did {s} lose? | What is {s} looking for?",
        reply="{s} lost the {v}.",
    ),
    kind(
        PEOPLE,
        words.THINGS,
        tells="{s} broke the {v}. | {s} is repairing the {v}. | The {v} of {s} is broken.",
        changes="That works again, but now the {v} of {s} is broken.",
        asks="What did {s} break? | What of {s} is broken?",
        reply="The {v} of {s} is broken.",
    ),
    kind(
        PEOPLE,
        words.SUBJECTS,
        tells=(
            "{s} studies {v}. | {s} has a degree in {v}. | {s} reads a lot about {v}. | At "
            "school {s} was best in {v}."
        ),
        changes="{s} has changed to {v}.",
        asks="What does {s} study? | Which subject is {s} good at?",
        reply="{s} studies {v}.",
    ),
    kind(
        PEOPLE,
        words.TASKS,
        tells=(
            "{s} has to {v}. | {s} must not forget to {v}. | Remind {s} to {v}. | {s} "
            "promised to {v}."
        ),
        changes="That is done, now {s} has to {v}.",
        asks="What does {s} have to do? | What is on {s}'s list? | What did {s} promise?",
        reply="{s} has to {v}.",
    ),
    kind(
        PEOPLE,
        words.WORDS,
        tells=(
            "{s} wrote a story about {a} {v}. | {s} dreamed of {a} {v}. | {s} drew {a} {v}. | "
            "{s} talks about the {v} all the time."
        ),
        changes="Now {s} talks about {a} {v}.",
        asks="What is {s} thinking of? | What is on the mind of {s}?",
        reply="{s} is thinking of the {v}.",
    ),
    kind(
        PEOPLE,
        words.WORDS,
        tells="The nickname of {s} is {v}. | Everybody calls {s} {v}. | Friends call {s} {v}.",
        changes="By now everybody calls {s} {v}.",
        asks="What is the nickname of {s}? | What do friends call {s}?",
        reply="The nickname of {s} is {v}.",
    ),
)
