"""How sure a score is: intervals for shares, and for the difference between two conditions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(correct: int, questions: int) -> Interval:
    """The share of correct answers with its Wilson score interval, which holds at 0 and 1 too.

    Raises:
        ValueError: If there are no questions, or more correct answers than questions.
    """
    if not 0 <= correct <= questions or questions == 0:
        raise ValueError(f"{correct} correct of {questions}; expected 0 ≤ correct ≤ questions ≥ 1.")
    share = correct / questions
    pull = Z95**2 / questions
    centre = (share + pull / 2) / (1 + pull)
    half = math.sqrt(pull * (share * (1 - share) + pull / 4)) / (1 + pull)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def paired_bootstrap(
    first: Sequence[float],
    second: Sequence[float],
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    samples: int = 5000,
) -> Interval:
    """The mean of ``first - second`` over the same questions, with its percentile interval.

    Args:
        first, second (Sequence[float]): Scores of two conditions, question by question.
        weights (Sequence[float]): How much each question counts, more than 0. None: all alike.
        seed (int): The same seed gives the same interval.
        samples (int): How often the questions are drawn anew, with replacement.

    Raises:
        ValueError: If there are no scores, or the conditions differ in number, or the weights do.
    """
    weighted = np.ones(len(first)) if weights is None else np.asarray(weights, np.float64)
    if not len(first) == len(second) == len(weighted) or not len(first):
        raise ValueError(
            f"{len(first)} and {len(second)} scores; expected one of each for every question."
        )
    differences = np.subtract(first, second, dtype=np.float64)
    # How often each value is drawn is all that a mean needs, and there are few values.
    pairs, counts = np.unique([differences * weighted, weighted], axis=1, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(
        len(differences), counts / len(differences), samples
    )
    sums, totals = drawn @ pairs[0], drawn @ pairs[1]
    low, high = np.quantile(sums / totals, (0.025, 0.975))
    return Interval(float(np.average(differences, weights=weighted)), float(low), float(high))
