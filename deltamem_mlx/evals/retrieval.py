"""What a retriever would put into the context: the texts that share words with a question."""

import re
from collections.abc import Sequence
from importlib.util import find_spec

LIBRARY = "bm25s"
MISSING = f"Retrieved text needs {LIBRARY}: pip install 'deltamem-mlx[eval]'"


def can_retrieve() -> bool:
    """Whether the library that ranks texts is installed."""
    return find_spec(LIBRARY) is not None


def retrieved(texts: Sequence[str], sizes: Sequence[int], query: str, budget: int) -> list[int]:
    """Which texts to show, best first by BM25 and as many as fit, in the order of ``texts``.

    Of texts that are as good the newest is taken: so are all where no word is shared. The best is
    taken even if it alone is larger than the budget.

    Args:
        texts (Sequence[str]): To choose from, the oldest first.
        sizes (Sequence[int]): Of each, in tokens.
        query (str): The question.
        budget (int): Tokens of what is chosen, at most.

    Raises:
        ModuleNotFoundError: If bm25s (the ``eval`` extra) is not installed.
    """
    scores = _scores([_words(text) for text in texts], _words(query))
    order = sorted(range(len(texts)), key=lambda i: (-scores[i], -i))
    chosen, used = order[:1], sum(sizes[i] for i in order[:1])
    for i in order[1:]:
        if used + sizes[i] <= budget:
            chosen.append(i)
            used += sizes[i]
    return sorted(chosen)


def _scores(texts: Sequence[list[str]], query: list[str]) -> list[float]:
    try:
        from bm25s import BM25  # optional: the `eval` extra
    except ModuleNotFoundError:
        raise ModuleNotFoundError(MISSING) from None
    if not query or not any(texts):  # nothing to index or to look for
        return [0.0] * len(texts)
    ranking = BM25()
    ranking.index(list(texts), show_progress=False)
    return [float(score) for score in ranking.get_scores(query)]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
