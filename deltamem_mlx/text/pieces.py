"""Which part of a text each token stands for."""

import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher
from itertools import pairwise

from mlx_lm.tokenizer_utils import TokenizerWrapper

Pieces = list[tuple[str, float | None]]
_NO_TEXT = "\0"
_WORD = re.compile(r"\w+|[^\w\s]")
_MOST_WORDS = 2000
_ROLES = ("system", "user", "assistant", "model", "tool")


def pieces_of(tokenizer: TokenizerWrapper, ids: Sequence[int]) -> list[str]:
    """The text that each token adds."""
    detokenizer = tokenizer.detokenizer
    detokenizer.reset()
    pieces = []
    for token in ids:
        detokenizer.add_token(token)
        pieces.append(detokenizer.last_segment)
    detokenizer.finalize()
    if pieces:
        pieces[-1] += detokenizer.last_segment
    return pieces


def shown_pieces(
    tokenizer: TokenizerWrapper, ids: Sequence[int], pieces: Sequence[str]
) -> list[str]:
    """The pieces as people are shown them: special tokens say nothing, and a role behind one is
    ``user:``."""
    special, shown = _special(tokenizer), []
    for before, token, piece in zip([None, *ids], ids, pieces, strict=False):
        heads = before in special and piece.strip() in _ROLES
        shown.append("" if token in special else f" {piece.strip()}:" if heads else piece)
    return shown


def _special(tokenizer: TokenizerWrapper) -> set[int]:
    """Tokens that stand for no text; that for unknown words does, unless it is another as well."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
    unknown, ends = tokenizer.unk_token_id, (tokenizer.bos_token_id, tokenizer.pad_token_id)
    if unknown not in (*ends, *tokenizer.eos_token_ids):
        found.discard(unknown)
    return found


def without_text(pieces: Sequence[str], at: Collection[int]) -> list[str]:
    """The pieces again, those at some places replaced by what is in no text."""
    return [_NO_TEXT if i in at else piece for i, piece in enumerate(pieces)]


def valued(texts: Sequence[str], pieces: Sequence[str], values: Sequence[float]) -> list[Pieces]:
    """Each of some texts cut where its tokens end, with the value of each.

    White space and case are not compared: some tokenizers lose them. Where a tokenizer does not
    know a word of a text, its words are looked for one by one.

    Args:
        texts (Sequence[str]): In the order in which the tokens say them, other text between.
        pieces (Sequence[str]): The text of each token.
        values (Sequence[float]): Of each token; where several make one character, the largest.

    Returns:
        list[Pieces]: (part, value) pairs for each text, whose parts together are the text. One
        that the tokens do not say has the value None, and so has white space alone.
    """
    solid, owner = _solid(pieces)
    end = len(solid)
    found: list[Pieces] = []
    for text in reversed(texts):
        wanted = _solid([text])[0]
        start = solid.rfind(wanted, 0, end) if wanted else -1
        if start >= 0:
            found.append(_cut(text, owner[start : start + len(wanted)], values))
            end = start
            continue
        tokens = pieces[: owner[end - 1] + 1] if end else []
        parts, first = _word_by_word(text, tokens, values)
        found.append(parts)
        end = end if first is None else owner.index(first)
    return found[::-1]


def _solid(pieces: Sequence[str]) -> tuple[str, list[int]]:
    """The characters to compare, and whose each of them is."""
    kept = [(i, c) for i, piece in enumerate(pieces) for c in piece if not c.isspace()]
    small = (c.lower() if len(c.lower()) == 1 else c for _, c in kept)
    return "".join(small), [i for i, _ in kept]


def _cut(text: str, owner: Sequence[int], values: Sequence[float]) -> Pieces:
    """A text whose characters other than white space belong to these tokens."""
    places = [i for i, character in enumerate(text) if not character.isspace()]
    cuts = [i for i in range(1, len(owner)) if owner[i] != owner[i - 1]]
    starts, ends = [0, *cuts], [*cuts, len(owner)]
    parts: Pieces = []
    last = owner[0] - 1
    for first, behind in zip(starts, ends, strict=True):
        a = places[first] if parts else 0
        b = places[behind] if behind < len(places) else len(text)
        # Tokens that end in the middle of a character say nothing by themselves.
        value = max(values[last + 1 : owner[first] + 1])
        parts.append((text[a:b], float(value)))
        last = owner[first]
    return parts


def _word_by_word(
    text: str, pieces: Sequence[str], values: Sequence[float]
) -> tuple[Pieces, int | None]:
    """The words of a text with the values of tokens that are these words; and the first of them."""
    starts = [match.start() for match in _WORD.finditer(text)]
    if not starts or len(starts) > _MOST_WORDS:
        return [(text, None)] if text else [], None
    cuts = [0, *starts[1:], len(text)]
    words = [text[a:b] for a, b in pairwise(cuts)]
    matcher = SequenceMatcher(
        None, [_solid([w])[0] for w in words], [_solid([p])[0] for p in pieces], autojunk=False
    )
    token = {
        block.a + i: block.b + i
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    }
    if not token:
        return [(text, None)], None
    parts = [(w, float(values[token[i]]) if i in token else None) for i, w in enumerate(words)]
    return parts, min(token.values())
