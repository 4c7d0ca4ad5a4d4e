"""How MemoryAgentBench scores an answer, by the kind of its source."""

import re
from collections.abc import Sequence

from .text_scores import holds, normalised, rouge_l

# Kind of source (how its name begins) → competence and tokens of an answer at most.
KINDS: dict[str, tuple[str, int]] = {
    "ruler_qa": ("AR", 50),
    "longmemeval": ("AR", 50),
    "eventqa": ("AR", 40),
    "icl": ("TTL", 20),
    "recsys_redial": ("TTL", 300),
    "infbench_sum": ("LRU", 1200),
    "detective_qa": ("LRU", 2000),
    "factconsolidation": ("SF", 10),
}
RECOMMENDED = 5


def scores_of(kind: str, said: str, answers: Sequence[str]) -> dict[str, float]:
    """Metric → score; ``score`` is the one that counts for this kind.

    Args:
        kind (str): A key of ``KINDS``.
        said (str): The answer.
        answers (Sequence[str]): Accepted ones; the events, for ``eventqa``; the movies, for
          ``recsys_redial``.
    """
    words, true = normalised(said), [normalised(answer) for answer in answers]
    if kind == "eventqa":
        return {"score": sum(holds(words, event) for event in true) / len(true)}
    if kind == "recsys_redial":
        return {"score": _recall_at_5(said, true)}
    if kind == "infbench_sum":
        return {"score": max(rouge_l(words, summary) for summary in true)}
    if kind == "detective_qa":
        return {"score": float(any(_same_choice(said, answer) for answer in answers))}
    if kind == "icl":
        words = normalised(re.sub(r"^\W*label\b\W*", "", said.strip(), flags=re.IGNORECASE))
    exact = float(words in true)
    inside = float(any(holds(words, answer) for answer in true))
    return {
        "score": exact if kind == "icl" else inside,
        "exact match": exact,
        "substring match": inside,
    }


def _recall_at_5(said: str, movies: Sequence[list[str]]) -> float:
    """How many of the movies are among the first five that were named."""
    lines = [line for line in said.splitlines() if line.strip()]
    named = lines if len(lines) > 1 else said.split(",")
    first = [normalised(re.sub(r"^\W*\d+[.):]\s*", "", item)) for item in named[:RECOMMENDED]]
    return sum(any(holds(item, movie) for item in first) for movie in movies) / len(movies)


def _same_choice(said: str, answer: str) -> bool:
    """Whether the option chosen is the true one: by its letter, or else by its words."""
    true = re.match(r"\W*([A-Z])\b", answer.strip())
    if true is None:
        return holds(normalised(said), normalised(answer))
    named = re.findall(r"answer\W+(?:is\W+)?\(?([A-Z])\b", said, flags=re.IGNORECASE)
    first = re.match(r"\W*([A-Z])(?:[.):]|\s*$)", said.strip())
    chosen = named[-1] if named else first[1] if first else ""
    return chosen.upper() == true[1]
