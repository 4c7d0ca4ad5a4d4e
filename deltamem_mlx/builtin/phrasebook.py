"""How one speaks to the built-in pair: its patterns and its words."""

from .words import ANIMALS, CHATS, CITIES, COLOURS, FOODS, INSTRUMENTS, JOBS, PEOPLE, PET_NAMES
from .words import RELATIONS as _RELATIONS
from .words import THINGS as _THINGS

_CLASSES = {
    "NAME": PEOPLE,
    "CITY": CITIES,
    "JOB": JOBS,
    "INSTRUMENT": INSTRUMENTS,
    "FOOD": FOODS,
    "ANIMAL": ANIMALS,
    "PET": PET_NAMES,
    "THING": _THINGS,
    "COLOUR": COLOURS,
}


def patterns() -> list[tuple[str, str]]:
    """What can be told and how it is asked for, the first wording of each kind of fact."""
    name_of = {words: name for name, words in _CLASSES.items()}
    return [
        (
            f"{kind.tells[0].format(s=name_of[kind.subjects], v=name_of[kind.values])} .",
            kind.asks[0].format(s=name_of[kind.subjects]),
        )
        for kind in _RELATIONS
    ]


def words() -> dict[str, list[str]]:
    """The words that stand in the patterns, by the names that these have for them."""
    return {name: sorted(set(kind.all())) for name, kind in _CLASSES.items()}


def small_talk() -> list[str]:
    """What else it was told, and answers."""
    return [said for said, _ in CHATS]
