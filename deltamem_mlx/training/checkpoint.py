"""What a run needs to go on: one file, so that one rename makes a checkpoint.

Data order, context dropout and random numbers follow from the seed and the number of the update,
so there is nothing of them to save.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from safetensors import safe_open

from ..adapters.files import write_adapter, write_copy
from ..adapters.loading import adapter_of, base_model_of
from ..adapters.weights import read_weights, sealed, write_safetensors
from ..files import parse_json, write_atomically
from ..model.patch import config_of
from ..problems import (
    Field,
    differing,
    first_few,
    list_of,
    misfits,
    number,
    optional,
    shortened,
    whole_number,
)
from .episodes import Episode
from .settings import TrainSettings

STATE_FILE = Path("training") / "state.safetensors"
# What may differ when a run goes on: the result does not depend on it.
FREE = {"steps_per_report", "steps_per_eval", "save_every", "val_batches", "clear_cache_threshold"}

Identity = dict[str, Any]

_LOSS = Field(lambda v: isinstance(v, int | float) and not isinstance(v, bool), "a number")
_PROGRESS = {
    "update": whole_number(),
    "trained_tokens": whole_number(most=2**63 - 1),
    "seconds": number(0),
    **dict.fromkeys(("first", "recent"), list_of(_LOSS, 10)),
    **dict.fromkeys(
        ("train_loss", "val_loss", "val_loss_without", "val_loss_foreign"), optional(_LOSS)
    ),
}
_DECISIVE = {"iters": whole_number(1), "grad_accumulation_steps": whole_number(1)}


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        update (int): Updates done.
        trained_tokens (int): Tokens seen, of both passes.
        seconds (float): Spent on it.
        first, recent (list[float]): Losses of the first and the latest updates, to tell when it
          explodes.
        train_loss, val_loss, val_loss_without, val_loss_foreign (float): The last reported; the
          last two with an empty memory and with another conversation's.
    """

    update: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    recent: list[float] = field(default_factory=list)
    train_loss: float | None = None
    val_loss: float | None = None
    val_loss_without: float | None = None
    val_loss_foreign: float | None = None


def identity_of(
    model: nn.Module, settings: TrainSettings, episodes: Sequence[Episode], world_size: int
) -> Identity:
    """All that the weights at the end of a run follow from, as JSON values."""
    decisive = {name: value for name, value in asdict(settings).items() if name not in FREE}
    for name in ("count_alike", "distill", "no_harm", "margin", "max_step"):
        if decisive[name] == getattr(TrainSettings, name):
            del decisive[name]  # runs that were started before there was a choice go on
    return {
        **decisive,
        **config_of(model).to_dict(),
        "model": {k: v for k, v in base_model_of(model).items() if k != "name"},
        "episodes": len(episodes),
        "data": _digest(episodes),
        "processes": world_size,
    }


def _digest(episodes: Sequence[Episode]) -> str:
    """SHA-256 over some of the episodes: enough to notice other data."""
    digest = hashlib.sha256()
    for index in np.linspace(0, len(episodes) - 1, min(16, len(episodes))).astype(int):
        for view in (episodes[index].both, episodes[index].state_only):
            for array in (view.read.tokens, view.read.labels, view.write.tokens):
                digest.update(array.tobytes())
            if view.plain is not None:
                digest.update(b"unrelated")
                if not view.unrelated:
                    digest.update(view.plain.labels.tobytes())
    return digest.hexdigest()


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    state: Mapping[str, mx.array],
    progress: Progress,
    identity: Identity,
    snapshot: int | None = None,
) -> None:
    """Write the adapter, a numbered copy of it if ``snapshot`` is given, and the state to resume.

    The state is the last file to appear, and holds the weights too: whatever moment a process is
    killed at, the folder has a whole adapter and a whole state, and the state decides.
    """
    adapter = adapter_of(model)
    bad = [name for name, tensor in adapter.tensors.items() if not mx.isfinite(tensor).all().item()]
    if bad:
        raise FloatingPointError(f"NaN or infinite weights in {', '.join(bad[:3])}")
    write_adapter(adapter, folder)
    if snapshot is not None:
        write_copy(adapter, folder / f"{snapshot:07d}_adapters.safetensors")
    about = json.dumps({"progress": asdict(progress), "identity": identity})
    tensors = dict(state)
    seal = sealed(tensors, about, "")
    write_atomically(folder / STATE_FILE, lambda path: write_safetensors(path, tensors, seal))


def read_checkpoint(folder: Path) -> tuple[dict[str, mx.array], Progress, Identity] | None:
    """The state of the run in ``folder``; ``None`` if there is none.

    Raises:
        ValueError: If the file is damaged, or holds what no run writes.
    """
    path = folder / STATE_FILE
    if not path.exists():
        return None
    try:
        state, seal = read_weights(path)
        progress, identity = _about(_unsealed(path) if seal is None else parse_json(seal.settings))
    except ValueError as error:
        reason = str(error).removeprefix(f"{path} cannot be read: ").partition(". It may be")[0]
        raise ValueError(unusable(path, reason)) from error
    return state, progress, identity


def _unsealed(path: Path) -> object:
    """What a state says beside its tensors that version 0.1.0 wrote, which had no checksum."""
    with safe_open(str(path), framework="np") as file:
        said = file.metadata() or {}
    return {name: parse_json(said.get(name, "null")) for name in ("progress", "identity")}


def _about(values: object) -> tuple[Progress, Identity]:
    """Progress and identity, every field looked at."""
    values = values if isinstance(values, dict) else {}
    progress, identity = values.get("progress"), values.get("identity")
    if not isinstance(progress, dict) or not isinstance(identity, dict):
        raise ValueError("it is no state of a run")
    wrong = misfits(progress, _PROGRESS) + misfits(identity, _DECISIVE)
    wrong += [f"{shortened(name)}: unknown" for name in progress.keys() - _PROGRESS.keys()]
    if not wrong and progress["update"] > identity["iters"] // identity["grad_accumulation_steps"]:
        wrong = [f"update: {progress['update']}, more than the run has"]
    if wrong:
        raise ValueError("; ".join(first_few(wrong)))
    return Progress(**progress), identity


def check_state(
    state: Mapping[str, mx.array], wanted: Mapping[str, mx.array], folder: Path
) -> None:
    """Raise ValueError unless a state has the tensors that the run's model and optimizer need."""
    wrong = [f"{name}: missing" for name in wanted.keys() - state.keys()]
    wrong += [f"{shortened(name)}: not used" for name in state.keys() - wanted.keys()]
    for name in sorted(wanted.keys() & state.keys()):
        has, needs = state[name], wanted[name]
        if (has.shape, has.dtype) != (needs.shape, needs.dtype):
            wrong.append(f"{name}: {has.dtype} {has.shape}, expected {needs.dtype} {needs.shape}")
        elif not mx.isfinite(has).all().item():
            wrong.append(f"{name}: NaN or infinite values")
    if wrong:
        raise ValueError(unusable(folder / STATE_FILE, "; ".join(first_few(sorted(wrong)))))


def unusable(path: Path, reason: str) -> str:
    """The message about a state that nothing can go on from."""
    return (
        f"{path} cannot be read: {reason}. Start anew from one of the numbered adapters: "
        "--resume-adapter-file, and another --adapter-path."
    )


def check_identity(saved: Identity, wanted: Identity, folder: Path) -> None:
    """Refuse to go on with what would end elsewhere.

    Raises:
        ValueError: If anything differs that the result follows from; all of it is listed.
    """
    wanted = json.loads(json.dumps(wanted))
    other = [
        f"{name}: {shortened(saved.get(name), 200)}, now {shortened(wanted.get(name), 200)}"
        for name in differing(saved, wanted)
    ]
    if other:
        raise ValueError(
            f"The run in {folder} was started with other settings or data:\n  "
            + "\n  ".join(other)
            + "\nResume with those, or begin another run from its weights: "
            f"--resume-adapter-file {folder / 'adapters.safetensors'} and another --adapter-path."
        )
