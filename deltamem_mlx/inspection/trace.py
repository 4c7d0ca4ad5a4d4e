"""What a text does to the memory while it is read: written how strongly, overwriting what.

The text runs through the model once, in chunks; between chunks the state is looked at.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from ..memory.actions import memory_state, observe, set_memory_state, write_spans
from ..memory.measures import States, change, share_left, similarities, survivals
from ..model.patch import config_of
from ..text.spans import Spans
from .script import Script, ScriptTurn

MARKS, LONGEST_STEP = 64, 512
LITTLE = 0.25  # of the most that a turn changes


@dataclass(frozen=True)
class Trace:
    """What happened to the memory over T tokens, in L layers, seen at P marks.

    Args:
        pieces (list[str]): The text of each token.
        shown (list[str]): The same as people are shown it: without special tokens.
        turns (list[ScriptTurn]): The turns, in order.
        layers (list[int]): Indices of the layers.
        granularity (str): ``memory_write_granularity`` of the adapter.
        write (np.ndarray): [T, L], the mean write gate β of each token.
        steps (list[int]): Token counts at which movement was measured; ends with T.
        moved (np.ndarray): [len(steps)], ``change`` of the state since the step before, the mean
          over layers.
        marks (list[int]): Token counts at which the state was kept; the turns' ends are among
          them, and 0 if the memory was not empty at the start.
        similarity (np.ndarray): [P, P], cosine similarity of the states, the mean over layers.
        contrast (np.ndarray): [P, P], the same once the mean of all P states is taken away: what
          the states share hides what tells them apart.
        survival (np.ndarray): [P, P], see ``survivals``; ``None`` where single tokens are not what
          is written.
        turn_moved (list[float]): ``change`` of the state over each turn.
        left (np.ndarray): [turns, P], the share of the change that each turn made which the states
          at the marks still have, see ``share_left``; NaN before the turn's end. Where the memory
          was not empty at the start, a row more, the first: what is left of that.
    """

    pieces: list[str]
    shown: list[str]
    turns: list[ScriptTurn]
    layers: list[int]
    granularity: str
    write: np.ndarray
    steps: list[int]
    moved: np.ndarray
    marks: list[int]
    similarity: np.ndarray
    contrast: np.ndarray
    survival: np.ndarray | None
    turn_moved: list[float]
    left: np.ndarray

    @property
    def kind(self) -> str:
        """What its turns are: ``paragraph`` or ``line`` of a text, else ``message``."""
        return next((t.role for t in self.turns if t.role in ("paragraph", "line")), "message")

    @property
    def starts(self) -> list[int]:
        """Where each turn starts."""
        return [0, *(turn.end for turn in self.turns[:-1])]

    def told_much(self) -> list[int]:
        """The turns but the last, from 0, that changed enough for what is left of it to say much:
        beside others, one that changed little has nothing to lose."""
        least = LITTLE * max(self.turn_moved[1:], default=0.0)
        return [n for n, far in enumerate(self.turn_moved[:-1]) if far >= least]

    def left_of(self, turn: int) -> float:
        """How much of the change that a turn made is left at the end of all."""
        return float(self.left[turn + (self.marks[0] == 0), -1])

    def overwritten_after(self, mark: int, level: float = 0.5) -> int | None:
        """Tokens from a mark until the state's contrast to that at the mark is below ``level``.

        Args:
            mark (int): A token count among ``marks``: a turn's end, or 0.
            level (float): Below this it counts as overwritten.

        Returns:
            int: Tokens; ``None`` if the trace ends before.
        """
        at = self.marks.index(mark)
        below = np.flatnonzero(self.contrast[at, at:] < level)
        return self.marks[at + below[0]] - mark if len(below) else None


def trace(
    model: nn.Module,
    script: Script,
    *,
    state: States | None = None,
    every_token: bool = False,
    max_kv_size: int | None = None,
    progress: Callable[[int, int], object] = lambda tokens, total: None,
) -> Trace:
    """Run a script through the model and watch its memory.

    Every turn is told by itself: with sequence-state adapters it is an ingest of its own (arXiv
    2605.12357, section 3.3), and system messages belong to the next.

    Args:
        model (nn.Module): A model with an adapter.
        script (Script): From ``script.text_script`` or ``messages_script``.
        state (Mapping): The memory to begin with, layer index → [1, H, r, r]. Default: empty.
        every_token (bool): Measure movement token by token. Takes a call of the model each.
        max_kv_size (int): Make the KV cache a sliding window of this many tokens.
        progress (Callable): Called after each step with the tokens read so far, and all of them.

    Raises:
        ValueError: If the state does not fit the model.
    """
    cache = make_prompt_cache(model, max_kv_size)
    if state is not None:
        set_memory_state(cache, {i: mx.array(np.asarray(s)) for i, s in state.items()})
    granularity = config_of(model).memory_write_granularity
    watch = _Watch(cache, [turn.end for turn in script.turns], _grid(script), state is not None)
    with observe(cache, watch.gates):
        for start, end in _ingests(script):
            inside = [step for step in watch.kept if start < step < end]
            steps = range(start + 1, end + 1) if every_token else [*inside, end]
            with _writing(cache, script.spans, granularity, start, end):
                for a, b in pairwise([start, *steps]):
                    tokens = mx.array([script.spans.token_ids[a:b]])
                    model(tokens, cache=cache)
                    mx.eval([c.state for c in cache])  # and no logits
                    progress(b, script.turns[-1].end)
                    if b < end:
                        watch.look(b)
            watch.look(end)
    return watch.trace(script, granularity)


def _grid(script: Script) -> set[int]:
    """The marks: every turn's end, and points evenly within the turns.

    There are about ``MARKS``, or more where the steps between them would be longer than
    ``LONGEST_STEP`` tokens.
    """
    total = script.turns[-1].end
    marks = set()
    for start, end in pairwise([0, *(turn.end for turn in script.turns)]):
        parts = max(round(MARKS * (end - start) / total), math.ceil((end - start) / LONGEST_STEP))
        marks |= set(np.linspace(start, end, parts + 1).round().astype(int).tolist()[1:])
    return marks - {0}


def _ingests(script: Script) -> list[tuple[int, int]]:
    """The turns as they are written: start and end of each that has a message of its own."""
    ids = script.spans.message_ids
    cuts = [0]
    for turn in script.turns:
        own = turn.role != "system" and any(i >= 0 for i in ids[cuts[-1] : turn.end])
        if own or turn is script.turns[-1]:
            cuts.append(turn.end)
    return [(a, b) for a, b in pairwise(cuts) if a < b]


def _writing(
    cache: list, spans: Spans, granularity: str, start: int, end: int
) -> AbstractContextManager:
    if granularity == "token":
        return nullcontext()
    sentence_ids = None if spans.sentence_ids is None else [spans.sentence_ids[start:end]]
    return write_spans(cache, [spans.message_ids[start:end]], sentence_ids)


class _Watch:
    """Collects gates and states while a script is fed."""

    def __init__(self, cache: list, ends: list[int], marks: set[int], keep_start: bool):
        self.cache, self.ends, self.kept = cache, set(ends), sorted(marks)
        self._marks = marks
        self._last = self._turn_start = self._states()
        self.snapshots = {0: self._last} if keep_start else {}
        self.log_keeps = {0: np.zeros(1)} if keep_start else {}
        self._sum = np.zeros(1)
        self.steps: list[int] = []
        self.moved: list[float] = []
        self.turn_moved: list[float] = []
        self.writes: list[np.ndarray] = []
        self._pending: dict[int, tuple[mx.array, mx.array]] = {}

    def gates(self, layer: int, gates: dict[str, mx.array]) -> None:
        """The observer: what is wanted of the gates of a call, lazily."""
        decay = mx.log(mx.maximum(gates["keep"], 1e-30)).sum(axis=1).reshape(-1)
        self._pending[layer] = gates["write"].mean(axis=(0, 2, 3)), decay

    def look(self, count: int) -> None:
        """Measure the state after ``count`` tokens."""
        writes, decays = zip(*(self._pending[i] for i in sorted(self._pending)), strict=True)
        self.writes.append(np.array(mx.stack(list(writes), axis=1)))
        self._sum = self._sum + np.array(mx.concatenate(list(decays)), np.float64)
        states = self._states()
        self.steps.append(count)
        self.moved.append(_mean_change(self._last, states))
        self._last = states
        if count in self._marks:
            self.snapshots[count], self.log_keeps[count] = states, self._sum
        if count in self.ends:
            self.turn_moved.append(_mean_change(self._turn_start, states))
            self._turn_start = states

    def trace(self, script: Script, granularity: str) -> Trace:
        states = np.stack(list(self.snapshots.values()))
        rows = np.broadcast_arrays(*self.log_keeps.values())
        return Trace(
            pieces=script.pieces,
            shown=script.shown,
            turns=script.turns,
            layers=sorted(self._pending),
            granularity=granularity,
            write=np.concatenate(self.writes),
            steps=self.steps,
            moved=np.array(self.moved),
            marks=list(self.snapshots),
            similarity=similarities(states),
            contrast=similarities(states - states.mean(axis=0)),
            survival=survivals(np.stack(rows)) if granularity == "token" else None,
            turn_moved=self.turn_moved,
            left=self._left(),
        )

    def _left(self) -> np.ndarray:
        marks = list(self.snapshots)
        ends = [mark for mark in marks if mark in self.ends or mark == 0]
        before, rows = np.zeros_like(self._last), []
        for end in ends:
            after = self.snapshots[end]
            rows.append(
                [
                    share_left(before, after, state) if mark >= end else np.nan
                    for mark, state in self.snapshots.items()
                ]
            )
            before = after
        return np.array(rows)

    def _states(self) -> np.ndarray:
        """[L, H·r·r], layers in order."""
        states = memory_state(self.cache)
        return np.array(mx.stack([states[i].reshape(-1) for i in sorted(states)]))


def _mean_change(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.mean([change(x, y) for x, y in zip(a, b, strict=True)]))
