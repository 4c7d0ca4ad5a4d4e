"""What a turn of a session wrote most strongly, watched while it is fed and answered."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..memory.actions import observe
from ..model.gauge import mean_strengths, watched_layers
from ..model.patch import config_of, spread_of_memory
from ..session.session import MemorySession
from ..text.pieces import pieces_of

# Of what the strongest word has: the others are what every word is written with.
_WORTH_SAYING = 0.3


class TurnWatch:
    """How strongly the tokens of one turn were written.

    Args:
        session (MemorySession): Whose turn it is.

    Attributes:
        written (int): Tokens that the turn wrote, once it is over.
    """

    def __init__(self, session: MemorySession):
        self._spread = spread_of_memory(session.model)
        layers = watched_layers(self._spread.all_memories)
        self._gates: dict[int, list[mx.array]] = {layer: [] for layer in layers}
        self._strength = np.zeros(0, np.float32)
        self._session, self._before = session, session.context_tokens
        self._written_before = session.stats()["tokens_written"]
        self._by_token = config_of(session.model).memory_write_granularity == "token"
        self.written = 0
        self._tokens: list[int] = []
        self._skipped = 0

    def see(self, layer: int, gates: dict[str, mx.array]) -> None:
        """The observer of the turn."""
        if layer in self._gates:
            self._gates[layer].append(gates["write"].mean(axis=(0, 2, 3)))

    def end(self) -> None:
        """The turn is over; of a model in a pipeline all processes call it."""
        self.written = self._session.stats()["tokens_written"] - self._written_before
        tokens, kept = self._session.context_tokens, len(self._before)
        self._tokens = tokens[kept:] if tokens[:kept] == self._before else tokens
        # What the context had lost is fed again first, unwritten.
        self._skipped = max(0, len(self._tokens) - self.written)
        self._strength = mean_strengths(self._gates, self._spread)

    def strongest(self, most: int = 3, among: Sequence[str] = ()) -> list[tuple[str, float]]:
        """The words written most strongly, with the mean write gate of their strongest token.

        Nothing of adapters that write means over spans: there no token is written by itself; nor
        where tokens were fed that are not in the context.

        Args:
            most (int): How many words.
            among (Sequence[str]): Texts whose words count; those of the template do not.
        """
        if not self._by_token or not self.written:
            return []
        strength = self._strength
        if len(strength) != len(self._tokens):
            return []  # guesses of a draft model were fed and taken back
        wanted = {word.lower(): word for text in among for word in plain_words(text)}
        best: dict[str, float] = {}
        for word, start, end in word_spans(self._session.tokenizer, self._tokens):
            part = strength[max(start, self._skipped) : end]
            names = (wanted.get(name.lower()) for name in plain_words(word) if part.size)
            for name in filter(None, names):
                best[name] = max(best.get(name, 0.0), float(part.max()))
        top = max(best.values(), default=0.0)
        found = [item for item in best.items() if item[1] >= top * _WORTH_SAYING]
        return sorted(found, key=lambda item: -item[1])[:most]


@contextmanager
def watched(session: MemorySession) -> Iterator[TurnWatch]:
    """Watch the turns of a session within this context; they write what they write without it."""
    watch = TurnWatch(session)
    with observe(session.cache, watch.see):
        yield watch
    watch.end()


def word_spans(
    tokenizer: TokenizerWrapper, tokens: Sequence[int]
) -> Iterator[tuple[str, int, int]]:
    """(word, first token, behind its last) of all words: tokens up to the next space."""
    pieces = pieces_of(tokenizer, tokens)
    start = 0
    for i in range(1, len(pieces) + 1):
        if i == len(pieces) or pieces[i][:1].isspace() or pieces[i - 1][-1:].isspace():
            yield "".join(pieces[start:i]), start, i
            start = i


def plain_words(text: str) -> list[str]:
    """The words of a text, without what stands around them."""
    words = (word.strip(".,;:!?\"'()[]{}<>|*_`") for word in text.split())
    return [word for word in words if any(map(str.isalnum, word))]
