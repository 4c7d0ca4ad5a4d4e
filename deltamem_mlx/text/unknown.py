"""Words that a tokenizer has no tokens for."""

from .rendering import Tokenizer


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text that become the unknown token, in order and once each.

    Tokenizers that can spell any word have none; the one of the built-in pair knows 342.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in tokenizer.encode(text):
        return []
    words = dict.fromkeys(text.split())
    return [word for word in words if unknown in tokenizer.encode(word)]
