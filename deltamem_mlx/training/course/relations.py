"""All kinds of facts that are told in English."""

from .about_belongings import ABOUT_BELONGINGS
from .about_people import ABOUT_PEOPLE
from .about_things import ABOUT_THINGS

RELATIONS = (*ABOUT_PEOPLE, *ABOUT_BELONGINGS, *ABOUT_THINGS)
