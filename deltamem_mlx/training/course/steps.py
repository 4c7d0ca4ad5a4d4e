"""The steps of a course. Each goes on from the adapter before it, and leaves one or what it found.

A step that was stopped is taken again: what it wrote is used, and it ends as if it had never
stopped.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map

from ...adapters.files import AdapterFiles, read_adapter, write_adapter
from ...adapters.loading import save_adapter
from ...model.patch import memory_layers, set_base_model
from ...text.rows import ConversationRow
from ..dataset import EpisodeDataset
from ..guard import Diverged
from ..settings import TrainSettings
from ..trainer import Trainer
from ..update import Params, adapter_params, set_adapter_params
from .choosing import HeldOut, least_loss
from .language import messages_of
from .layers import able_layers, attentions
from .ledger import begin_slower, halved, iterations_of, note_iterations
from .measures import Measuring
from .pace import seconds_an_iteration
from .plan import VALIDATING, iterations_in
from .quieting import quieted
from .recording import record, script
from .stages import Stage
from .start import best_start, fitted, recorded_together
from .together import lead
from .vocabulary import words_of
from .work import Work
from .writing import stock_of

Result = Mapping[str, Any]

FACTS = 3  # told in a recorded conversation
ROWS = 8000  # of a stage, at most: further ones are repeated
SPARE = 4  # times as many as are trained on: batches are put together by length out of many
QUIETED = (0.0, 0.5, 0.75, 1.0)  # how much of the correction that keeps a memory quiet is made
LEFT_QUIET = 0.6  # of what is remembered, at least; training brings some back
TALKS = 64  # conversations whose perplexity is measured, at most
HALVED = 2  # times that a training is begun anew with half its learning rate, at most
ORDINARY = 200  # turns that a memory is to keep quiet in


class Stopped(Exception):
    """A course was stopped by Ctrl-C; everything is saved."""


def write(work: Work, folder: Path) -> Result:
    """Let the model write what the conversations are made of."""
    stock = work.stock = stock_of(work, folder)
    return {
        "turns": len(stock.train.ordinary),
        "asked": len(stock.answers) + len(stock.train.asked),
        "words": len(stock.any_words),
    }


def start(work: Work, folder: Path) -> Result:
    """Fit the first adapter in closed form."""
    assert work.stock is not None
    model, first = work.model, work.plan.stages[0]
    known = words_of(work.chat)
    spoken = [known[word] for word in work.stock.any_words]
    teller = work.language.teller(work.seed_of(1), work.stock.any_words)
    said = script(work.chat, teller, work.plan.recorded, FACTS)
    with work.viewer.counting("fitting", len(able_layers(model))) as tell:
        weights, directions, size = fitted(model, said, spoken, tell)
    with work.plain_afterwards():
        tried = best_start(model, weights, directions, size, work.judge(first))
        set_base_model(model, work.name)
        save_adapter(model, folder)
    return {"tried": [one._asdict() for one in tried], "layers": tried[0].layers}


def quiet(work: Work, folder: Path, stage: Stage) -> Result:
    """Make the memory keep quiet on ordinary text, as far as the next stage begins better so."""
    assert work.stock is not None and work.before is not None
    teller = work.language.teller(work.seed_of(2), work.stock.any_words)
    said = script(work.chat, teller, max(20, round(0.3 * work.plan.recorded)), FACTS)
    turns = list(dict.fromkeys(work.stock.train.ordinary)) or work.stock.train.asked
    turns = teller.rng.sample(turns, min(ORDINARY, len(turns)))
    ordinary = said._replace(parts=[work.chat.tokens(messages_of([turn])) for turn in turns])
    with work.adapted(work.before) as model:
        layers = list(memory_layers(model))
        old = adapter_params(model)
    sites = attentions(work.model)
    several = recorded_together(work.model, [*said.parts, *ordinary.parts])
    new: Params = {}
    for first in range(0, len(layers), several):
        here = {layer: sites[layer] for layer in layers[first : first + several]}
        keep, calm = (record(work.model, part, here).inputs for part in (said, ordinary))
        with work.adapted(work.before) as model:
            for layer in here:
                quieted(model, layer, *(x[layer].astype(np.float32) for x in (keep, calm)))
                new[f"layer_{layer}"] = adapter_params(model)[f"layer_{layer}"]
    judge = work.judge(stage)
    found = {}
    for share in QUIETED:
        with work.adapted(work.before) as model:
            _put_between(model, old, new, share)
            found[share] = judge(model)
    best = least_loss(found, found[0.0], LEFT_QUIET) or 0.0
    with work.adapted(work.before) as model:
        _put_between(model, old, new, best)
        save_adapter(model, folder)
    return {"share": best, "tried": _told(found)}


def _put_between(model: nn.Module, old: Params, new: Params, share: float) -> None:
    """Weights that are a share of the way from old ones to new ones."""
    set_adapter_params(model, tree_map(lambda a, b: a + share * (b - a), old, new))


def _told(found: Mapping[float, HeldOut]) -> dict[str, dict[str, float]]:
    """As JSON values."""
    return {str(name): one._asdict() for name, one in found.items()}


def train(work: Work, folder: Path, stage: Stage) -> Result:
    """One training, with half the learning rate if it diverges; Ctrl-C stops it at a checkpoint.

    Raises:
        Stopped: If it was stopped.
        Diverged: If the loss exploded again and again.
    """
    iters = _iterations(work, folder, stage)
    rows = min(ROWS, SPARE * iters * stage.batch_size)
    parts = work.episodes(stage, rows), work.held_out(stage)
    while True:
        settings = work.settings(stage, halved(folder), iters)
        try:
            return _trained(work, folder, settings, *parts)
        except Diverged as error:
            if begin_slower(folder) > HALVED:
                raise
            if not work.ranks.alone:  # another process may not have seen it, and be further
                raise Diverged(
                    f"{stage.name}: {error}. The same command begins it anew with half its "
                    "learning rate."
                ) from None


def _iterations(work: Work, folder: Path, stage: Stage) -> int:
    """As many as fit the time that a training may take, by how long some of its own take.

    Before the model has written anything it is not known how long its conversations are, and how
    much of them is to be learned.
    """
    planned = work.settings(stage).iters
    if stage.name not in work.seconds:
        return planned
    found = iterations_of(folder)
    if found is None:
        assert work.before is not None
        some = work.episodes(stage, min(ROWS, SPARE * planned * stage.batch_size))
        settings = work.settings(stage)
        lead(work.ranks, work.before, settings, some)
        with work.adapted(work.before) as model:
            each = VALIDATING * seconds_an_iteration(model, some, settings, work.ranks.group)
        found = iterations_in(work.seconds[stage.name], each, stage)
        note_iterations(folder, found)
        if found < planned:
            work.viewer.note(f"{stage.name}: {found} iterations fit in its time, not {planned}.")
    return found


def _trained(
    work: Work,
    folder: Path,
    settings: TrainSettings,
    train_on: EpisodeDataset,
    valid: EpisodeDataset,
) -> Result:
    assert work.before is not None
    lead(work.ranks, work.before, settings, train_on, valid)
    with work.adapted(work.before) as model:
        trainer = Trainer(model, train_on, valid, settings, folder, resume=True)
        with work.viewer.training(trainer):
            outcome = trainer.run()
        if not outcome.finished:
            raise Stopped
        tokens = trainer.progress.trained_tokens
    return {
        "iterations": outcome.iteration,
        "learning rate": settings.learning_rate,
        "tokens": tokens,
        "seconds": outcome.seconds,
        "peak_memory": outcome.peak_memory,
        "loss": outcome.val_loss,
        "loss with an empty memory": outcome.val_loss_without,
        "loss with another's": outcome.val_loss_foreign,
    }


def rounded(adapter: AdapterFiles) -> AdapterFiles:
    """An adapter with its weights in float16, as it is given away."""
    tensors = {name: x.astype(mx.float16) for name, x in adapter.tensors.items()}
    return replace(adapter, tensors=tensors)


def measure(work: Work, folder: Path) -> Result:
    """What the adapter is worth, in float16."""
    assert work.before is not None and work.stock is not None
    write_adapter(rounded(read_adapter(work.before)), folder)
    stage = work.plan.stages[-1]
    talk = work.language.teller(work.seed_of(3))
    rows = [
        ConversationRow([*talk.conversation(stage.shape)], None, f"conversation {i}")
        for i in range(TALKS)
    ]
    with work.adapted(folder) as model:
        measuring = Measuring(model, work.chat, work.builtin, work.plan.measured, folder, work.seed)
        return {"wanted": asdict(work.plan.measured)} | measuring.all(work.viewer, rows)
