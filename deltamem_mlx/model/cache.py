"""The memory of one layer, in a prompt cache, for a batch of conversations."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from ..compat import BaseCache, make_savable
from .fingerprint import AdapterMark
from .gauge import WriteGauge
from .ingest import Ingest
from .trail import Step, Trail

Observer = Callable[[int, dict[str, mx.array]], None]
Rows = list[int] | None
Counts = Literal["left_padding", "lengths"]


@make_savable
class MemoryCache(BaseCache):
    """The memory of one layer for a batch of B conversations.

    Counters and flags are Python lists with an entry per conversation: arrays that no output
    depends on would grow the graph with every decoded token.

    Args:
        layer (int): Index of the layer in ``model.layers``.
        heads (int): State heads H.
        rank (int): Side r of a state.
        granularity (str): ``memory_write_granularity`` of the adapter.
        mark (AdapterMark): Which adapter writes it; the fingerprint alone, where it comes from
          a file; empty: not known.

    Attributes:
        matrix (mx.array): float32 [B, H, r, r], or ``None`` while nothing has been written.
        read_only (list[bool]): Conversations that are read but not written.
        written (list[int]): Tokens written so far.
        left_padding, lengths (list[int]): Padding before, and tokens up to the padding after,
          the coming positions of each conversation; ``None`` where there is none.
        ingest (Ingest): Span writes in progress.
        observer (Callable): Called with the layer's gates. Not part of the state.
        gauges (list[WriteGauge]): What watches each conversation, in whichever batch; ``None``
          where nothing does. Not part of the state.
        trail (Trail): The way back over the last tokens; None: there is none. Not part of the
          state: copies, and what is merged, extracted or saved, begin without one.
    """

    def __init__(
        self,
        layer: int,
        heads: int,
        rank: int,
        granularity: str = "token",
        mark: AdapterMark | str = "",
    ):
        self.layer, self.heads, self.rank = layer, heads, rank
        self.granularity, self.mark = granularity, mark
        self.matrix: mx.array | None = None
        self.read_only = [False]
        self.written = [0]
        self.left_padding: list[int] | None = None
        self.lengths: list[int] | None = None
        self.ingest: Ingest | None = None
        self.observer: Observer | None = None
        self.gauges: list[WriteGauge | None] | None = None
        self.trail: Trail | None = None

    @classmethod
    def of_adapter(cls, layer: int, mark: AdapterMark) -> "MemoryCache":
        """An empty memory of a model's adapter."""
        config = mark.config
        granularity = config.memory_write_granularity
        return cls(layer, config.num_state_heads, config.rank, granularity, mark)

    def __repr__(self) -> str:
        many = f"{self.batch_size} conversations, " if self.batch_size > 1 else ""
        written = f"{sum(self.written):,} tokens written"
        shape = f"{f'{self.heads} × ' * (self.heads > 1)}{self.rank} × {self.rank}"
        return f"MemoryCache(layer {self.layer}, {shape}, {many}{written})"

    def fresh(self) -> "MemoryCache":
        """An empty memory of the same kind."""
        return MemoryCache(self.layer, self.heads, self.rank, self.granularity, self.mark)

    @property
    def fingerprint(self) -> str:
        """Of the adapter that writes it; empty: not known."""
        return self.mark if isinstance(self.mark, str) else self.mark.fingerprint

    def _is_of(self, mark: AdapterMark | str) -> bool:
        """Whether that adapter wrote it, as far as that is known."""
        if self.mark is mark or not (wrote := self.fingerprint):
            return True
        return wrote == mark if isinstance(mark, str) else mark.wrote(wrote)

    def belong_to(self, mark: AdapterMark) -> None:
        """Go on under a model's adapter.

        Raises:
            ValueError: If the memory was written under another one.
        """
        if not self._is_of(mark):
            wrote = self.fingerprint
            raise ValueError(
                f"The prompt cache was made under another adapter (fingerprint {wrote[:12]}; this "
                f"one is {mark.fingerprint[:12]}). Load that adapter, or make a new prompt cache "
                "and feed the text again."
            )
        self.mark = mark

    @property
    def batch_size(self) -> int:
        return len(self.written)

    def fit_batch(self, batch_size: int) -> None:
        """Get ready for ``batch_size`` conversations: a memory that is still new takes any number.

        Raises:
            ValueError: If the memory holds another number of conversations.
        """
        if self.matrix is None and self.batch_size == 1 != batch_size:
            self.read_only *= batch_size
            self.written *= batch_size
            self.gauges = None  # whose tokens would it watch?
        if self.batch_size != batch_size:
            raise ValueError(
                f"The memory holds {self.batch_size} conversations, the call has {batch_size}. "
                "Use a prompt cache per batch: make_prompt_cache(model), or merge() several."
            )

    @property
    def states(self) -> mx.array:
        """float32 [B, H, r, r], zeros while nothing has been written."""
        if self.matrix is None:
            return mx.zeros((self.batch_size, self.heads, self.rank, self.rank))
        return self.matrix

    @property
    def watched(self) -> bool:
        """Whether anyone wants to know of the gates of the coming tokens."""
        return self.observer is not None or self.gauges is not None

    @property
    def undisturbed(self) -> bool:
        """Whether all coming tokens are real and, where anything is, written one by one."""
        return self.ingest is None and self.left_padding is None and self.lengths is None

    def real(self, n: int) -> np.ndarray | None:
        """Bool [B, n], false where one of the next ``n`` positions is padding; None: all real."""
        if self.left_padding is None and self.lengths is None:
            return None
        position = np.arange(n)
        mask = np.ones((self.batch_size, n), bool)
        if self.left_padding is not None:
            mask &= position >= np.array(self.left_padding)[:, None]
        if self.lengths is not None:
            mask &= position < np.array(self.lengths)[:, None]
        return mask

    def __getstate__(self) -> dict[str, object]:
        # For copies: nobody who copies a cache expects it to be trimmable, or watched, for as long
        # as this is.
        return vars(self) | {"trail": None, "observer": None}

    def advance(
        self,
        matrix: mx.array,
        n: int,
        written: Sequence[int] | int | None = None,
        before: Ingest | None = None,
    ) -> None:
        """Keep ``matrix`` after a call over ``n`` positions that wrote ``written`` tokens a row.

        ``before`` is a copy of the ingest as it was before the call, where there is one.
        """
        if self.trail is not None:
            self.trail.add(Step(n, self.matrix, self.written, before))
        self.matrix = matrix
        if isinstance(written, int):
            self.written = [count + written for count in self.written]
        elif written is not None:
            self.written = [a + b for a, b in zip(self.written, written, strict=True)]
        if self.lengths is not None:
            self.lengths = [length - n for length in self.lengths]
        if self.left_padding is not None:
            self.left_padding = [max(0, p - n) for p in self.left_padding]
            if not any(self.left_padding):
                self.left_padding = None

    def clear(self) -> None:
        """Forget everything; read-only flags stay."""
        self.matrix, self.ingest = None, None
        self.written = [0] * self.batch_size
        self.forget_way_back()

    def forget_way_back(self) -> None:
        """Nothing that was fed before can be taken back."""
        if self.trail is not None:
            self.trail.clear()

    def trim(self, n: int) -> int:
        """Go back to before the last ``n`` tokens, exactly.

        Raises:
            ValueError: If the trail does not reach as far.
        """
        if self.trail is None:
            raise ValueError(
                "A prompt cache with a memory cannot be trimmed unless it keeps the way back: make "
                "it dm.rewindable(cache, tokens=N) before the tokens that may be dropped, or copy "
                "it (copy.deepcopy) there."
            )
        if n > 0:
            _, self.matrix, self.written, self.ingest = self.trail.back(n)
        return n

    # What mlx-lm does to a cache.

    @property
    def state(self) -> tuple[object, ...]:
        ingest = None if self.ingest is None else self.ingest.state
        flags = [int(flag) for flag in self.read_only]
        rows: list[Rows] = [flags, self.written, self.left_padding, self.lengths]
        arrays = [None if row is None else mx.array(row, dtype=mx.int32) for row in rows]
        about = self.layer, self.heads, self.rank, self.granularity
        return *about, self.matrix, *arrays, ingest, self.fingerprint

    @state.setter
    def state(self, v: Sequence[Any]) -> None:  # what a file holds
        # Version 0.1.0 wrote ten values, without the fingerprint.
        about, rows, (ingest, *mark) = v[:5], v[5:9], v[9:]
        self.layer, self.heads, self.rank, self.granularity, self.matrix = about
        self.mark = mark[0] if mark else ""
        rows = [None if row is None else row.tolist() for row in rows]
        self.read_only, self.written, self.left_padding, self.lengths = rows
        self.read_only = [bool(flag) for flag in self.read_only]
        self.ingest = None if ingest is None else Ingest.from_state(ingest)
        self.observer, self.gauges, self.trail = None, None, None

    def prepare(
        self,
        *,
        left_padding: Sequence[int] | None = None,
        lengths: Sequence[int] | None = None,
        right_padding: Sequence[int] | None = None,
    ) -> None:
        if left_padding is not None:
            before = self.left_padding or [0] * len(left_padding)
            self._set_rows(
                "left_padding", [a + b for a, b in zip(before, left_padding, strict=True)]
            )
        if lengths is not None and right_padding is not None and max(right_padding) > 0:
            self._set_rows("lengths", list(lengths))

    def _set_rows(self, name: Counts, rows: list[int]) -> None:
        self.fit_batch(len(rows))
        setattr(self, name, [int(row) for row in rows])

    def finalize(self) -> None:
        self.left_padding = self.lengths = None

    def filter(self, batch_indices: Sequence[int] | mx.array) -> None:
        indices = np.array(batch_indices).tolist()
        if self.matrix is not None:
            self.matrix = self.matrix[mx.array(indices)]
        for name in ("read_only", "written", "left_padding", "lengths", "gauges"):
            if (rows := getattr(self, name)) is not None:
                setattr(self, name, [rows[i] for i in indices])
        if self.ingest is not None:
            self.ingest = self.ingest.select(indices)
        self.forget_way_back()  # it is that of other rows

    def extract(self, idx: int) -> "MemoryCache":
        new = self.fresh()
        new.read_only, new.written = list(self.read_only), list(self.written)
        new.matrix, new.ingest, new.gauges = self.matrix, self.ingest, self.gauges
        new.filter([idx])
        if new.ingest is not None and new.ingest.done:
            new.ingest = None
        return new

    def extend(self, other: "MemoryCache") -> None:
        merged = self.merge([self, other])
        for name in ("left_padding", "lengths"):
            if (mine := getattr(self, name)) is not None or getattr(other, name) is not None:
                empty = 0 if name == "left_padding" else np.iinfo(np.int32).max
                theirs = getattr(other, name) or [empty] * other.batch_size
                setattr(merged, name, (mine or [empty] * self.batch_size) + theirs)
        merged.observer = self.observer
        vars(self).update(vars(merged))

    @classmethod
    def merge(cls, caches: Sequence["MemoryCache"]) -> "MemoryCache":
        kinds = {(c.layer, c.heads, c.rank, c.granularity) for c in caches}
        marks = [c.mark for c in caches if c.mark]
        # A model's, rather than what a file says of one.
        mark = next((m for m in marks if isinstance(m, AdapterMark)), marks[0] if marks else "")
        if len(kinds) > 1 or not all(c._is_of(mark) for c in caches):
            raise ValueError("Cannot merge memories of different adapters or layers.")
        new = caches[0].fresh()
        new.mark = mark
        new.read_only = [flag for c in caches for flag in c.read_only]
        new.written = [count for c in caches for count in c.written]
        if any(c.gauges is not None for c in caches):
            new.gauges = [g for c in caches for g in c.gauges or [None] * c.batch_size]
        if any(c.matrix is not None for c in caches):
            new.matrix = mx.concatenate([c.states for c in caches])
        if any(c.ingest is not None for c in caches):
            for c in caches:
                if c.ingest is not None and c.ingest.aligned:  # each by its own padding
                    c.ingest.begin(c.real(c.ingest.longest))
            new.ingest = Ingest.concatenate(
                [c.ingest or Ingest.nothing(c.batch_size) for c in caches]
            )
            for c in caches:
                c.ingest = None  # its tokens are now fed through the batch
        return new

    def empty(self) -> bool:
        return self.matrix is None

    @property
    def nbytes(self) -> int:
        return 0 if self.matrix is None else self.matrix.nbytes
