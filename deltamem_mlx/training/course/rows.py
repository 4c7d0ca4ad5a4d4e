"""The conversations that a stage of a course trains on."""

from collections.abc import Sequence

from ...text.rows import ConversationRow
from .language import Language, Message, Teller
from .stages import Stage
from .stock import Portion, Stock, part_of
from .unrelated import Silent, Unrelated

OWN = 0.3  # share of conversations that a user gave, where there are some


def stage_rows(
    stage: Stage,
    language: Language,
    stock: Stock,
    count: int,
    *,
    seed: int,
    held_out: bool = False,
    openings: Sequence[Sequence[Message]] = (),
    own: Sequence[ConversationRow] = (),
) -> list[ConversationRow]:
    """So many conversations of a stage, which follow from the seed.

    Args:
        stage (Stage): What they are like.
        language (Language): What they are in.
        stock (Stock): What the model wrote for them.
        count (int): How many.
        seed (int): Of all choices.
        held_out (bool): Of what is held out.
        openings (Sequence[Sequence[Message]]): What a share of them may begin with.
        own (Sequence[ConversationRow]): Rows of the user's, to be among them.
    """
    part = stock.valid if held_out else stock.train
    teller = language.teller(2 * seed + held_out, stock.any_words)
    rng = teller.rng
    unrelated = Unrelated(
        language,
        teller,
        part.asked,
        part.strangers,
        stock.answers,
        part.ordinary,
        joined=stage.joined,
    )
    own = part_of(own, held_out)
    rows = []
    for number in range(count):
        where = f"conversation {number + 1} of {stage.name}"
        if own and rng.random() < OWN:
            rows.append(rng.choice(own))
            continue
        made = _conversation(stage, teller, part, unrelated)
        begin = rng.choice(openings) if openings and rng.random() < stage.opened else ()
        silent = frozenset(len(begin) + place for place in made.replies)
        rows.append(ConversationRow([*begin, *made.messages], None, where, silent))
    return rows


def _conversation(stage: Stage, teller: Teller, part: Portion, unrelated: Unrelated) -> Silent:
    """One of a stage, without a system message."""
    rng, asked = teller.rng, stage.shape.asked
    if rng.random() < stage.unrelated:
        among = rng.random() < stage.beside
        return unrelated.beside(stage.shape) if among else unrelated.alone(asked)
    talking = bool(part.ordinary) and rng.random() < stage.talk
    talk = rng.choices(part.ordinary, k=asked) if talking else ()
    told = teller.conversation(stage.shape, talk, part.chatted or None)
    return Silent(told, frozenset(range(len(told) - 2 * len(talk) + 1, len(told), 2)))
