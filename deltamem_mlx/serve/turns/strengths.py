"""How strongly the words of a turn were written, for a client that asks."""

from collections.abc import Sequence

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ...memory.actions import PromptCache, memories
from ...model.gauge import WriteGauge, watched_layers
from ...model.spread import Spread
from ...text.messages import Message
from ...text.pieces import pieces_of, valued, without_text
from ...text.spans import NO_SPAN, Spans


class TurnStrengths:
    """Watches the tokens of one turn.

    Args:
        tokenizer (TokenizerWrapper): The model's.
        spread (Spread): Which processes have the model. In a pipeline each watches its layers.
    """

    def __init__(self, tokenizer: TokenizerWrapper, spread: Spread):
        self._tokenizer, self._spread = tokenizer, spread
        self._gauge, self._spans, self._start = WriteGauge(), Spans([], []), 0

    def watch(self, cache: PromptCache, spans: Spans, start: int) -> None:
        """Watch what is fed next to a cache that holds ``start`` tokens; it begins with ``spans``.

        What was watched before does not count: it is fed anew.
        """
        self._gauge, self._spans, self._start = WriteGauge(), spans, start
        found = memories(cache)
        for layer in watched_layers(self._spread.all_memories):
            if layer in self._spread.mine:
                found[layer].gauges = [self._gauge]

    def of(self, messages: Sequence[Message], context: Sequence[int]) -> list[dict[str, object]]:
        """Each message with its pieces, which together are its text, and their mean write gates.

        Pieces have null where their tokens are not known: of texts that the template changes, and
        of all where guesses of a draft model were fed and taken back.

        Args:
            messages (Sequence[Message]): Of the turn, the answer last.
            context (Sequence[int]): All tokens in the context, the last of them those watched.
        """
        texts = [str(message.get("content") or "") for message in messages]
        strengths, tokens = self._gauge.strengths(self._spread), list(context[self._start :])
        if len(strengths) != len(tokens):
            tokens, strengths = [], strengths[:0]
        values = [round(float(strength), 4) for strength in strengths]
        parts = valued(texts, self._pieces(tokens), values)
        return [
            {"role": message["role"], "pieces": pieces}
            for message, pieces in zip(messages, parts, strict=True)
        ]

    def _pieces(self, tokens: list[int]) -> list[str]:
        """The text of each token; what the template says is none."""
        special = set(self._tokenizer.all_special_ids)
        ids = [*self._spans.message_ids, *[0] * len(tokens)]
        of_template = {i for i, token in enumerate(tokens) if token in special or ids[i] == NO_SPAN}
        return without_text(pieces_of(self._tokenizer, tokens), of_template)
