"""The way back over the last tokens of a memory: what was there before each of them."""

from collections import deque
from typing import NamedTuple

import mlx.core as mx

from .ingest import Ingest


class Step(NamedTuple):
    """Tokens that were fed at once, and the memory as it was before them.

    Attributes:
        tokens (int): How many they were: one, or a span write's ingest, or a padded batch's call.
        matrix (mx.array): float32 [B, H, r, r]; None: nothing had been written.
        written (list[int]): Tokens written, per conversation.
        ingest (Ingest): The span writes that were under way; None: none.
    """

    tokens: int
    matrix: mx.array | None
    written: list[int]
    ingest: Ingest | None


class Trail:
    """The steps of a memory's last tokens.

    States are kept as they were, so going back is exact. Arrays are never changed in place: a
    step costs what a state holds, H·r² floats a conversation.

    Args:
        most (int): Tokens that can be taken back.

    Attributes:
        length (int): Tokens that can be taken back now.
    """

    def __init__(self, most: int):
        self.most = most
        self.length = 0
        self._steps: deque[Step] = deque()

    def add(self, step: Step) -> None:
        """Keep a step, and let go of those that lie further back than ``most`` tokens."""
        self._steps.append(step)
        self.length += step.tokens
        while self.length - self._steps[0].tokens >= self.most:
            self.length -= self._steps.popleft().tokens

    def clear(self) -> None:
        """Nothing before the present can be gone back to."""
        self._steps.clear()
        self.length = 0

    def back(self, tokens: int) -> Step:
        """Take ``tokens`` back; returns the step that begins where they began.

        Raises:
            ValueError: If they reach further back than the trail, or begin within an ingest.
        """
        steps, left = list(self._steps), tokens
        while left > 0 and steps:
            last = steps.pop()
            left -= last.tokens
        if left:
            reason = (
                f"the last {self.length} can be: make the cache dm.rewindable(cache, tokens=N)"
                if left > 0
                else "that lies within tokens that were fed and written as one"
            )
            raise ValueError(f"{tokens} tokens of a memory cannot be taken back; {reason}.")
        self._steps = deque(steps)
        self.length -= tokens
        return last
