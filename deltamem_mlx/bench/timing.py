"""Runs of several contestants in turn, and what their times say."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import mlx.core as mx

# Each starts and does its work, and returns the seconds of the part that counts.
Run = Callable[[], float]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Samples:
    """Repeated measurements of one thing.

    Args:
        values (tuple[float, ...]): In the order they were taken; never empty.
    """

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the median of ever more such values lies, with 95 % certainty or more.

        Two of the values, chosen by rank: whatever the values' distribution, the median is below
        the n-th lowest only if fewer than n of all fall below it, as in tosses of a coin. Up to
        five values are too few to be so certain; then it is the extremes.
        """
        ordered, n = sorted(self.values), len(self.values)
        below = accumulate(math.comb(n, k) for k in range(n))  # tosses with at most k heads
        first = max(sum(40 * tosses <= 2**n for tosses in below) - 1, 0)
        return ordered[first], ordered[-1 - first]

    def over(self, other: "Samples") -> "Samples":
        """The ratios to ``other``, round by round: a machine that slows down slows both."""
        return Samples(tuple(a / b for a, b in zip(self.values, other.values, strict=True)))

    def map(self, change: Callable[[float], float]) -> "Samples":
        return Samples(tuple(change(value) for value in self.values))

    def to_dict(self) -> dict[str, Any]:
        """Median, its interval, low and high (the extremes), and all values."""
        ends = {"median": self.median, "interval": list(self.interval)}
        return ends | {"low": self.low, "high": self.high, "values": list(self.values)}


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Args:
        rounds (int): Rounds per figure. Default: what fits in ``seconds``, from 3 to 100.
        seconds (float): Time for one figure.
        clock (str): ``wall``, or ``cpu`` for the processor time of the process.
    """

    rounds: int | None = None
    seconds: float = 4.0
    clock: str = "wall"

    def enough(self, done: int, elapsed: float) -> bool:
        if self.rounds is not None:
            return done >= self.rounds
        return done >= 100 or (done >= 3 and elapsed * (done + 1) / done > self.seconds)

    def time(self, work: Callable[[], object]) -> float:
        """Seconds that ``work`` takes on this clock, pending work before it not counted."""
        mx.synchronize()
        now = CLOCKS[self.clock]
        start = now()
        work()
        mx.synchronize()
        return now() - start


def alternate(contestants: Mapping[str, Run], effort: Effort) -> dict[str, Samples]:
    """Times the contestants in turn, A B, B A, A B, …, after one round that does not count.

    Turning the order around every other round cancels what a steady drift of the machine's
    speed would add to the later one.
    """
    for run in contestants.values():
        run()
    values: dict[str, list[float]] = {name: [] for name in contestants}
    began, done = time.perf_counter(), 0
    while not (done and effort.enough(done, time.perf_counter() - began)):
        names = list(contestants)
        for name in names if done % 2 == 0 else reversed(names):
            values[name].append(contestants[name]())
        done += 1
    return {name: Samples(tuple(taken)) for name, taken in values.items()}
