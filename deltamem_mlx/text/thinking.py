"""Models that can think before they answer, and are to answer at once."""

from collections.abc import Mapping
from typing import Any

from mlx_lm.tokenizer_utils import TokenizerWrapper


def at_once(tokenizer: TokenizerWrapper, given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Arguments of the chat template under which a model does not think, unless told to.

    mlx-lm's default is to think, for more tokens than a measured or learned answer has.

    Args:
        tokenizer (TokenizerWrapper): The model's.
        given (Mapping[str, Any]): Arguments that go before.
    """
    return {"enable_thinking": False} | dict(given) if tokenizer.has_thinking else given
