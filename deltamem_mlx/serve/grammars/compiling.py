"""Grammars made ready for a model's tokens, by llguidance: in the requests' own threads.

The thread that owns the model must not wait for a schema, so what one may cost is bounded: by its
length; by the time that a trial of it takes; and for each token by llguidance's own counters, which
are the same in all processes of a model.
"""

import subprocess
import sys
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..errors import ApiError, refuse
from ..requests.shapes import Shape
from .processor import GrammarProcessor
from .writing import grammar_text

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_LONGEST = 32 << 10  # characters
_TRIAL, _PATIENCE = Path(__file__).with_name("trial.py"), 5.0  # seconds
_KEPT = 64
_LARGEST, _FUEL = 100_000, 100_000  # symbols; work for one token
_MISSING = (
    "a server with llguidance. Install it there: pip install 'deltamem-mlx[structured]'; or leave "
    "this out"
)


@dataclass
class Grammar:
    """What an answer has to be.

    Attributes:
        text (str): In llguidance's Lark dialect.
        matcher (LLMatcher): The same, ready; another process makes its own.
    """

    text: str
    matcher: "LLMatcher | None" = field(default=None, compare=False, repr=False)

    def __getstate__(self) -> dict[str, object]:
        return {"text": self.text, "matcher": None}


class Grammars:
    """Those that requests ask for, the latest of them kept.

    Args:
        tokenizer (TokenizerWrapper): Of the model.
        vocabulary (int): Width of its logits.
    """

    def __init__(self, tokenizer: TokenizerWrapper, vocabulary: int):
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._mutex = threading.Lock()
        self._trials = threading.Lock()  # one after another: answers have the other cores
        self._tokens: LLTokenizer | None = None
        self._kept: OrderedDict[str, LLMatcher] = OrderedDict()

    def of(self, shape: Shape | None) -> Grammar | None:
        """The grammar of an answer, ready; None: whatever the model says.

        Raises:
            ApiError: If there is no such answer, or none that this model can give.
        """
        if shape is None:
            return None
        text = grammar_text(shape, self._tokenizer)
        if len(text) > _LONGEST:
            refuse(shape.param, f"schemas of {_LONGEST} characters at most")
        if text not in self._kept:
            self._known_tokens(shape.param)
            with self._trials:
                _try_out(text, shape.param)
        return Grammar(text, self._ready(text, shape.param))

    def follow(self, grammar: Grammar, *, thinks: bool) -> GrammarProcessor:
        """What follows an answer; ``thinks``: its prompt ends within the model's thoughts."""
        if grammar.matcher is None:
            grammar.matcher = self._ready(grammar.text, "grammar")
        return GrammarProcessor(grammar.matcher.deep_copy(), self._tokenizer, thinks=thinks)

    def _ready(self, text: str, param: str) -> "LLMatcher":
        with self._mutex:
            found = self._kept.pop(text, None) or self._compiled(text, param)
            self._kept[text] = found
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
            return found.deep_copy()

    def _compiled(self, text: str, param: str) -> "LLMatcher":
        tokens = self._known_tokens(param)
        from llguidance import LLMatcher, LLParserLimits

        limits = LLParserLimits(
            max_grammar_size=_LARGEST, step_lexer_fuel=_FUEL, verbose_errors=False
        )
        matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(text), log_level=0, limits=limits)
        if not matcher.is_error() and not any(matcher.compute_bitmask()):
            refuse(param, "a JSON Schema that something fits")
        if matcher.is_error():
            said = matcher.get_error().partition("\n")[0][:200]
            refuse(param, f"a JSON Schema that this server can follow: {said}")
        return matcher

    def _known_tokens(self, param: str) -> "LLTokenizer":
        """The model's tokens as llguidance reads them; a large vocabulary takes seconds."""
        if self._tokens is not None:
            return self._tokens
        try:
            from llguidance import LLTokenizer
        except ImportError:
            refuse(param, _MISSING)
        known = self._tokenizer
        try:
            self._tokens = LLTokenizer(
                known.backend_tokenizer.to_str(),
                n_vocab=max(len(known), self._vocabulary),
                eos_token=sorted(known.eos_token_ids),
            )
        except Exception as error:
            said = " ".join(str(error).split())[:100]
            raise ApiError(
                400,
                f"{param}: the tokens of this model cannot be told apart as JSON needs it: {said}",
                param=param,
                code="invalid_value",
            ) from None
        return self._tokens


def _try_out(text: str, param: str) -> None:
    """Raises ApiError for a grammar that takes too long, or worse."""
    try:
        subprocess.run(
            [sys.executable, str(_TRIAL)],
            input=text.encode(),
            capture_output=True,
            timeout=_PATIENCE,
            check=True,
        )
    except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
        refuse(param, "a simpler JSON Schema: to read this one takes too long")
