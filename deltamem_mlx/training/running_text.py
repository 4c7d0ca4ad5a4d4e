"""Running text, to be read as without a memory.

A conversation has a template's marks. A text that is read and written token by token has none, and
a memory that has only seen conversations speaks there out of turn.
"""

import numpy as np

from ..text.rendering import Tokenizer, first_tokens
from .episodes import NO_WRITE, Episode, View
from .read_parts import UNSUPERVISED, ReadPart

LEARNED = 40  # tokens of a text whose predictions are learned: a label costs as much as four tokens


def text_episode(tokenizer: Tokenizer, text: str, max_length: int) -> Episode:
    """The episode of a text: all of it is read, and nothing is written before.

    Learned is what the plain model predicts at some places that lie evenly in it.

    Args:
        tokenizer (Tokenizer): The model's.
        text (str): With two tokens at least.
        max_length (int): Tokens that are kept, from its start.

    Raises ValueError if the text has fewer than two tokens.
    """
    found = [*first_tokens(tokenizer), *tokenizer.encode(text, add_special_tokens=False)]
    tokens = np.array(found[:max_length], np.int32)
    if len(tokens) < 2:
        raise ValueError(
            f"The text {text[:40]!r} has fewer than two tokens; nothing can be learned."
        )
    labels = np.full_like(tokens, UNSUPERVISED)
    places = np.linspace(len(tokens) - 1, 1, min(LEARNED, len(tokens) - 1)).astype(int)
    labels[places] = tokens[places]
    read = ReadPart(tokens, labels, len(found) - len(tokens))
    view = View(NO_WRITE, read, None, read)
    return Episode(view, view, target=0, written=0, visible=0)
