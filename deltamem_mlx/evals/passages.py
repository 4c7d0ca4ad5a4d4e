"""Passages whose every token is predicted: windows of plain text, or conversations."""

import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..files import read_text
from ..text.datasets import load_conversations
from ..text.rendering import first_tokens
from ..text.rows import ConversationRow
from ..text.spans import NO_SPAN, Spans, message_spans

TEXTS, ROWS = (".txt", ".md"), (".jsonl", ".json")
WINDOW = 512
EXPECTED = (
    "Expected a .txt or .md file, a folder of them, or a .jsonl file of conversations: "
    '{"messages": [...]} on each line.'
)

T = TypeVar("T")


class Text(NamedTuple):
    """A plain text, and where it was found."""

    text: str
    where: str


class Passage(NamedTuple):
    """What is read from an empty memory.

    Attributes:
        id (str): Where it was found; unique among the passages of a source.
        spans (Spans): Two tokens or more, with the ids of their messages (-1 in plain text).
    """

    id: str
    spans: Spans


Source = Sequence[Text] | Sequence[ConversationRow]


def read_source(name: str) -> Source:
    """The texts or conversations behind a name: of plain files, or of rows as for training.

    Raises:
        FileNotFoundError: If there is no such file or folder, or no text in the folder.
        ValueError: If a file is of another kind, empty, or not UTF-8 text, or rows are no
          conversations.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"No file or folder {name!r}. {EXPECTED}")
    if path.is_file() and path.suffix.lower() in ROWS:
        return load_conversations(path, valid_fraction=0).train
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() in TEXTS and p.is_file())
        if not files:
            raise FileNotFoundError(f"No .txt or .md file in the folder {name!r}. {EXPECTED}")
    elif path.suffix.lower() in TEXTS:
        files = [path]
    else:
        raise ValueError(f"{name!r} is neither text nor conversations. {EXPECTED}")
    texts = [Text(read_text(file), str(file)) for file in files]
    if not any(text.text.strip() for text in texts):
        raise ValueError(f"{name!r} is empty; expected text to predict.")
    return texts


def passages(
    source: Source,
    tokenizer: TokenizerWrapper,
    *,
    max_length: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    sentences: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
) -> list[Passage]:
    """The passages of a source.

    Args:
        source (Source): From ``read_source``.
        tokenizer (TokenizerWrapper): The model's.
        max_length (int): Tokens of a window, 512 if not given; of a conversation only so many are
          read from its start, all if not given.
        limit (int): So many passages, drawn by ``seed``. None: all. A larger limit keeps those of
          a smaller one.
        seed (int): Which are drawn.
        sentences (bool): Also give the ids of sentences in conversations.
        template_kwargs (Mapping): For the chat template.

    Raises:
        ValueError: If there is no passage of two tokens, or the chat template refuses a
          conversation.
    """
    window = max_length or WINDOW
    texts = [Text(item.text, item.where) for item in source if item.text]
    windows = [passage for text in texts for passage in _windows(text, tokenizer, window)]
    rows = [item for item in source if isinstance(item, ConversationRow) and not item.text]
    every: list[Passage | ConversationRow] = [*windows, *rows]
    found = [
        item
        if isinstance(item, Passage)
        else _conversation(
            item,
            tokenizer,
            max_length,
            sentences=sentences,
            template_kwargs=template_kwargs or {},
        )
        for item in _drawn(every, limit, seed)
    ]
    found = [passage for passage in found if len(passage.spans.token_ids) > 1]
    if not found:
        raise ValueError(
            f"{source[0].where!r} has fewer than two tokens, and the first is not predicted. Give "
            "a longer text."
        )
    return found


def _windows(text: Text, tokenizer: TokenizerWrapper, length: int) -> Iterator[Passage]:
    # verbose: transformers would warn of texts longer than the model's context.
    tokens = tokenizer.encode(text.text, add_special_tokens=False, verbose=False)
    begin = first_tokens(tokenizer)
    own = length - len(begin)
    for number, start in enumerate(range(0, len(tokens), own), start=1):
        ids = begin + tokens[start : start + own]
        if len(ids) > 1:
            yield Passage(f"{text.where}:{number}", Spans(ids, [NO_SPAN] * len(ids)))


def _conversation(
    row: ConversationRow,
    tokenizer: TokenizerWrapper,
    length: int | None,
    *,
    sentences: bool,
    template_kwargs: Mapping[str, Any],
) -> Passage:
    kwargs = dict(template_kwargs) | ({"tools": row.tools} if row.tools else {})
    try:
        found = message_spans(tokenizer, row.messages, sentences=sentences, template_kwargs=kwargs)
    except ValueError as error:
        raise ValueError(f"{row.where}: {error}") from error
    sentence_ids = None if found.sentence_ids is None else found.sentence_ids[:length]
    cut = Spans(found.token_ids[:length], found.message_ids[:length], sentence_ids)
    return Passage(row.where, cut)


def _drawn(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    if limit is None:
        return list(items)
    order = random.Random(seed).sample(range(len(items)), len(items))
    return [items[i] for i in sorted(order[:limit])]
