"""What a run needs to go on: one file, so that one rename makes a checkpoint.

Data order, context dropout and random numbers follow from the seed and the number of the update,
so there is nothing of them to save.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..adapters.files import write_adapter, write_copy
from ..adapters.loading import adapter_of, base_model_of
from ..files import write_atomically
from ..model.patch import config_of
from .episodes import Episode
from .settings import TrainSettings

STATE_FILE = Path("training") / "state.safetensors"
SNAPSHOT = re.compile(r"\d{7}_adapters\.safetensors")
# What may differ when a run goes on: the result does not depend on it.
LEFTOVER = re.compile(
    r"\.(state|adapters|adapter_config|metrics|loss|\d{7}_adapters)-\d+-[0-9a-f]{8}\.\w+"
)
FREE = {"steps_per_report", "steps_per_eval", "save_every", "val_batches", "clear_cache_threshold"}

Identity = dict[str, object]


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
    about = {"progress": json.dumps(asdict(progress)), "identity": json.dumps(identity)}
    write_atomically(
        folder / STATE_FILE,
        lambda path: mx.save_safetensors(str(path), dict(state), about),
    )


def read_checkpoint(folder: Path) -> tuple[dict[str, mx.array], Progress, Identity] | None:
    """The state of the run in ``folder``; ``None`` if there is none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return None
    try:
        state, about = mx.load(str(path), return_metadata=True)
        mx.eval(state)
        progress = Progress(**json.loads(about["progress"]))
        return state, progress, json.loads(about["identity"])
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read: {reason}. Start anew from one of the numbered adapters: "
            "--resume-adapter-file."
        ) from error


def check_identity(saved: Identity, wanted: Identity, folder: Path) -> None:
    """Refuse to go on with what would end elsewhere.

    Raises:
        ValueError: If anything differs that the result follows from; all of it is listed.
    """
    wanted = json.loads(json.dumps(wanted))
    differing = [
        f"{name}: {saved.get(name)!r}, now {wanted.get(name)!r}"
        for name in sorted({*saved, *wanted})
        if saved.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError(
            f"The run in {folder} was started with other settings or data:\n  "
            + "\n  ".join(differing)
            + "\nResume with those, or begin another run from its weights: "
            f"--resume-adapter-file {folder / 'adapters.safetensors'} and another --adapter-path."
        )


def clear_leftovers(folder: Path) -> None:
    """Remove half-written files of a process that was killed."""
    for path in [*folder.glob(".*"), *(folder / STATE_FILE).parent.glob(".*")]:
        if LEFTOVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left in ``folder``: its state, copies and reports."""
    (folder / STATE_FILE).unlink(missing_ok=True)
    for path in folder.glob("*_adapters.safetensors"):
        if SNAPSHOT.fullmatch(path.name):
            path.unlink()
    for name in ("metrics.jsonl", "loss.png"):
        (folder / name).unlink(missing_ok=True)
