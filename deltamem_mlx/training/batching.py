"""Batches: episodes drawn in an order that needs no memory of its own, and padded.

Which episodes step k trains on, and how each is shown, follows from the data, the seed and k. So a
run that goes on from step k sees what a run that never stopped would have seen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import count

import numpy as np

from ..text.spans import NO_SPAN
from .episodes import Episode, View
from .read_parts import UNSUPERVISED, ReadPart

_ORDER, _SHOWN, _GROUPS = 0, 1, 2

# Batches out of which episodes of like length are put together: without it a third of what short
# conversations are computed on is padding, with it a tenth.
WINDOW = 32


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """B episodes padded to a rectangle, on the right. Padding is never read, written or learned.

    Attributes:
        read_tokens, read_labels (np.ndarray): [B, R] int32; labels are -100 on padding.
        read_lengths (np.ndarray): [B] int32, at least 1.
        write_tokens (np.ndarray): [B, W] int32; W is 0 if no episode has a write part.
        write_lengths (np.ndarray): [B] int32, 0 for an episode without a write part.
        message_ids, sentence_ids (np.ndarray): [B, W] int32, of the write tokens; -1 on padding.
        teachers (tuple[ReadPart | None, ...]): Of each episode what the teacher reads who has the
          history in its context, if there is one.
        plains (tuple[ReadPart | None, ...]): Of each what the plain model reads whose predictions
          are learned in place of the text, if any are.
    """

    read_tokens: np.ndarray
    read_labels: np.ndarray
    read_lengths: np.ndarray
    write_tokens: np.ndarray
    write_lengths: np.ndarray
    message_ids: np.ndarray
    sentence_ids: np.ndarray
    teachers: tuple[ReadPart | None, ...]
    plains: tuple[ReadPart | None, ...]

    @property
    def read_mask(self) -> np.ndarray:
        """[B, R] bool: True on tokens, False on padding."""
        return np.arange(self.read_tokens.shape[1]) < self.read_lengths[:, None]

    @property
    def write_mask(self) -> np.ndarray:
        """[B, W] bool: True on tokens, False on padding."""
        return np.arange(self.write_tokens.shape[1]) < self.write_lengths[:, None]

    @cached_property
    def unrelated(self) -> np.ndarray:
        """[B, R] bool: labels whose text is not learned."""
        marked = np.zeros(self.read_labels.shape, bool)
        for row, plain in zip(marked, self.plains, strict=True):
            if plain is not None:
                row[: len(plain.labels)] = plain.labels != UNSUPERVISED
        return marked

    @cached_property
    def supervised(self) -> int:
        """How many tokens the loss counts: labels that have a token before them."""
        return int((self.read_labels[:, 1:] != UNSUPERVISED).sum())


def pad_batch(views: Sequence[View], *, pad_id: int = 0, multiple: int = 1) -> EpisodeBatch:
    """Views as one batch.

    Args:
        views (Sequence[View]): At least one.
        pad_id (int): The token on padding. Which one does not matter.
        multiple (int): Widths are rounded up to a multiple of this, for fewer distinct shapes.
    """
    if not views:
        raise ValueError("No views to pad: a batch needs at least one.")
    reads, writes = [view.read for view in views], [view.write for view in views]

    def pad(rows: list[np.ndarray], value: int) -> np.ndarray:
        width = -(-max(map(len, rows)) // multiple) * multiple
        padded = np.full((len(rows), width), value, np.int32)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded

    return EpisodeBatch(
        read_tokens=pad([read.tokens for read in reads], pad_id),
        read_labels=pad([read.labels for read in reads], UNSUPERVISED),
        read_lengths=np.array([len(read.tokens) for read in reads], np.int32),
        write_tokens=pad([write.tokens for write in writes], pad_id),
        write_lengths=np.array([len(write.tokens) for write in writes], np.int32),
        message_ids=pad([write.message_ids for write in writes], NO_SPAN),
        sentence_ids=pad([write.sentence_ids for write in writes], NO_SPAN),
        teachers=tuple(view.teacher for view in views),
        plains=tuple(view.plain for view in views),
    )


def batch_indices(count: int, batch_size: int, seed: int, step: int) -> list[int]:
    """The episodes of a step (from 0).

    Steps take batch_size at a time from one endless row: an order of all ``count`` episodes, then
    another, and so on. So none is left out, and a batch may span two epochs.
    """
    places = range(step * batch_size, (step + 1) * batch_size)
    return [int(_epoch_order(count, seed, place // count)[place % count]) for place in places]


def _groups(dataset: Sequence[Episode], batch_size: int, seed: int, window: int) -> list[list[int]]:
    """The episodes of the steps of a window: those of `batch_indices`, put together by length.

    So none is left out here either. A window is a quarter of an epoch at most, or the short ones
    of a small dataset would meet themselves in a batch.
    """
    size = window_size(len(dataset), batch_size)
    steps = range(window * size, (window + 1) * size)
    indices = [i for step in steps for i in batch_indices(len(dataset), batch_size, seed, step)]

    if size > 1:
        # Of conversations that end in questions or in texts, histories are of like length, say, and
        # what is read is not: so by what of both leaves less padding.
        lengths = {i: _lengths(dataset[i]) for i in indices}
        sorted_by = [
            sorted(indices, key=lambda i: (lengths[i][first] // 8, lengths[i][1 - first]))
            for first in (0, 1)
        ]
        indices = min(sorted_by, key=lambda order: _padded([lengths[i] for i in order], batch_size))
    order = np.random.default_rng([_GROUPS, seed, window]).permutation(size)
    return [indices[i * batch_size : (i + 1) * batch_size] for i in order]


def _lengths(episode: Episode) -> tuple[int, int]:
    """Tokens written and read."""
    return len(episode.both.write.tokens), len(episode.both.read.tokens)


def _padded(lengths: Sequence[tuple[int, int]], batch_size: int) -> int:
    """How many tokens a row of each batch has, padding included, over batches in this order."""
    batches_of = [lengths[i : i + batch_size] for i in range(0, len(lengths), batch_size)]
    return sum(max(column) for batch in batches_of for column in zip(*batch, strict=True))


def window_size(count: int, batch_size: int) -> int:
    """Steps whose episodes are put together by length."""
    return max(1, min(WINDOW, count // (4 * batch_size)))


@lru_cache(maxsize=4)
def _epoch_order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([_ORDER, seed, epoch]).permutation(count)


def batch_modes(
    batch_size: int, seed: int, step: int, *, state_only_prob: float, no_memory_prob: float
) -> list[str]:
    """How each episode of a step is shown: context dropout, drawn for every episode."""
    drawn = np.random.default_rng([_SHOWN, seed, step]).random(batch_size)
    return [
        "state_only"
        if value < state_only_prob
        else "no_memory"
        if value < state_only_prob + no_memory_prob
        else "both"
        for value in drawn
    ]


def batches(
    dataset: Sequence[Episode],
    batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    state_only_prob: float = 0.0,
    no_memory_prob: float = 0.0,
    pad_id: int = 0,
    multiple: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[EpisodeBatch]:
    """An endless row of training batches of episodes of like length, from ``start_step`` on.

    Args:
        dataset (Sequence[Episode]): Usually an `EpisodeDataset`.
        batch_size (int): Episodes a step, over all processes.
        seed (int): Order and context dropout follow from it and the step.
        start_step (int): Steps done before.
        state_only_prob, no_memory_prob (float): How often an episode is shown so.
        pad_id, multiple (int): As in `pad_batch`.
        rank, world_size (int): This process gets the rank-th of world_size equal parts of each
            batch.

    Raises:
        ValueError: Values out of range (all are listed), or an empty dataset.
    """
    _check(
        dataset, batch_size, seed, start_step, (state_only_prob, no_memory_prob), rank, world_size
    )
    share = batch_size // world_size
    mine = slice(rank * share, (rank + 1) * share)

    def endless() -> Iterator[EpisodeBatch]:
        groups: list[list[int]] = []
        for step in count(start_step):
            window, place = divmod(step, window_size(len(dataset), batch_size))
            if not groups or place == 0:
                groups = _groups(dataset, batch_size, seed, window)
            indices = groups[place]
            modes = batch_modes(
                batch_size,
                seed,
                step,
                state_only_prob=state_only_prob,
                no_memory_prob=no_memory_prob,
            )
            pairs = list(zip(indices, modes, strict=True))[mine]
            views = [dataset[index].view(mode) for index, mode in pairs]
            yield pad_batch(views, pad_id=pad_id, multiple=multiple)

    return endless()


def _check(
    dataset: Sequence[Episode],
    batch_size: int,
    seed: int,
    start_step: int,
    dropout: tuple[float, float],
    rank: int,
    world_size: int,
) -> None:
    wrong = {
        "the dataset is empty": len(dataset) == 0,
        f"batch_size is {batch_size}; expected at least 1": batch_size < 1,
        f"batch_size {batch_size} is not a multiple of the {world_size} processes": world_size < 1
        or batch_size % world_size != 0,
        f"rank is {rank}; expected 0 to {world_size - 1}": not 0 <= rank < world_size,
        f"seed is {seed}; expected 0 or more": seed < 0,
        f"start_step is {start_step}; expected 0 or more": start_step < 0,
        f"state_only_prob {dropout[0]} and no_memory_prob {dropout[1]}: expected probabilities "
        "with a sum of at most 1": min(dropout) < 0 or sum(dropout) > 1,
    }
    if any(wrong.values()):
        raise ValueError("Batches: " + "; ".join(what for what, is_so in wrong.items() if is_so))


def evaluation_batches(
    dataset: Sequence[Episode],
    batch_size: int,
    *,
    mode: str = "both",
    pad_id: int = 0,
    multiple: int = 1,
    rank: int = 0,
    world_size: int = 1,
) -> Iterator[EpisodeBatch]:
    """Every episode once, in order; the last batch may be smaller.

    Each process gets every world_size-th episode. Arguments as in `batches`; ``mode`` as in
    `Episode.view`.
    """
    mine = range(rank, len(dataset), world_size)
    for start in range(0, len(mine), batch_size):
        views = [dataset[index].view(mode) for index in mine[start : start + batch_size]]
        yield pad_batch(views, pad_id=pad_id, multiple=multiple)
