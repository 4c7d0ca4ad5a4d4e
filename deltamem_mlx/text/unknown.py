"""Words that a tokenizer has no tokens for."""

import string

from .rendering import Tokenizer

_AROUND = string.punctuation + "…“”„‘’«»–—"


def unknown_words(tokenizer: Tokenizer, text: str) -> list[str]:
    """The words of a text that become the unknown token, bare of punctuation, each once, in order.

    Tokenizers that can spell any word have none; the one of the built-in pair knows 342.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown is None or unknown not in tokenizer.encode(text):
        return []
    words = [word for word in text.split() if unknown in tokenizer.encode(word)]
    bare = [word.strip(_AROUND) for word in words]
    # What is unknown may be what stands around the word.
    named = (
        core if core and unknown in tokenizer.encode(core) else word
        for core, word in zip(bare, words, strict=True)
        if core
    )
    return list(dict.fromkeys(named))
