"""The conversations that a stage of a course trains on."""

from collections.abc import Sequence

from ...text.rows import ConversationRow
from .language import Language, Message
from .stages import Stage
from .stock import Stock, part_of
from .unrelated import Unrelated

OWN = 0.3  # share of conversations that a user gave, where there are some


def stage_rows(
    stage: Stage,
    language: Language,
    stock: Stock,
    count: int,
    *,
    seed: int,
    held_out: bool = False,
    opening: Sequence[Message] = (),
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
        opening (Sequence[Message]): What they begin with if the stage is plain.
        own (Sequence[ConversationRow]): Rows of the user's, to be among them.
    """
    part = stock.valid if held_out else stock.train
    teller = language.teller(2 * seed + held_out, stock.any_words)
    rng, asked = teller.rng, stage.shape.asked
    unrelated = Unrelated(
        language,
        teller,
        part.asked,
        part.strangers,
        stock.answers,
        part.ordinary,
        joined=stage.joined,
    )
    begin = list(opening) if stage.plain else []
    own = part_of(own, held_out)
    rows = []
    for number in range(count):
        where = f"conversation {number + 1} of {stage.name}"
        if own and rng.random() < OWN:
            rows.append(rng.choice(own))
        elif rng.random() < stage.unrelated:
            among = rng.random() < stage.beside
            made = unrelated.beside(stage.shape) if among else unrelated.alone(asked)
            rows.append(ConversationRow([*made.messages], None, where, made.replies))
        else:
            talking = bool(part.ordinary) and rng.random() < stage.talk
            talk = rng.choices(part.ordinary, k=asked) if talking else ()
            told = teller.conversation(stage.shape, talk, part.chatted or None)
            count = len(begin) + len(told)
            silent = frozenset(range(count - 2 * len(talk) + 1, count, 2))
            rows.append(ConversationRow([*begin, *told], None, where, silent))
    return rows
