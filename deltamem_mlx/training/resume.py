"""Where a run begins: anew, or at the checkpoint in its folder."""

import json
from dataclasses import asdict
from pathlib import Path

from .checkpoint import Identity, Progress, check_identity, check_state, read_checkpoint
from .update import Updater


def begin(
    updater: Updater, folder: Path, identity: Identity, resume: bool
) -> tuple[Progress, bool]:
    """How far the run has come, and whether that was read from a checkpoint.

    The files of the first process decide; the weights of the checkpoint go to all of them.

    Args:
        updater (Updater): Gets the weights and the optimizer's state.
        folder (Path): Of the run.
        identity (Identity): What the run's result follows from.
        resume (bool): Go on if there is something to go on with.

    Raises:
        ValueError: If ``resume`` is set and the folder holds a run with another identity, or a
          state that is damaged or not of this model.
    """
    if not resume:
        return Progress(), False
    found = read_checkpoint(folder) if updater.first_process else None
    state, progress, saved = found or ({}, None, None)
    text = json.dumps([progress and asdict(progress), saved])
    values, saved = json.loads(updater.first(text))
    if values is None:
        return Progress(), False
    check_identity(saved, identity, folder)
    if updater.first_process:
        check_state(state, updater.state(), folder)
    updater.set_state(state)
    return Progress(**values), True
