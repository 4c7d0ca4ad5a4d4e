"""How likely the tokens of an answer were, as OpenAI's clients read it."""

from collections.abc import Iterable

from mlx_lm.server import Response
from mlx_lm.tokenizer_utils import TokenizerWrapper

_LEAST = -9999.0  # OpenAI's for what could not have been said


def scores(said: Iterable[Response], tokenizer: TokenizerWrapper) -> dict[str, object]:
    """``logprobs`` of a choice; each token has mlx-lm's ``id`` beside OpenAI's fields.

    Args:
        said (Iterable[Response]): The tokens, one response each.
        tokenizer (TokenizerWrapper): The model's.
    """

    def entry(token: int, logprob: float) -> dict[str, object]:
        text = tokenizer.decode([token])
        data = None if "\ufffd" in text else list(text.encode())  # half a character has no text
        return {"id": token, "token": text, "bytes": data, "logprob": max(logprob, _LEAST)}

    content = [
        entry(item.token, item.logprob)
        | {"top_logprobs": [entry(top["id"], top["logprob"]) for top in item.top_tokens]}
        for item in said
    ]
    return {"content": content, "refusal": None}
