"""Where a run begins: anew, or at the checkpoint in its folder."""

import json
from dataclasses import asdict
from pathlib import Path

from .checkpoint import STATE_FILE, Identity, Progress, check_identity, read_checkpoint
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
        ValueError: If the folder holds an unfinished run and ``resume`` is not set, or a run with
          another identity and it is, or a damaged state.
    """
    found = read_checkpoint(folder) if updater.group.rank() == 0 else None
    state, progress, saved = found or ({}, None, None)
    text = json.dumps([progress and asdict(progress), saved])
    values, saved = json.loads(updater.first(text))
    if values is None:
        return Progress(), False
    progress = Progress(**values)
    if resume:
        check_identity(saved, identity, folder)
        updater.set_state(state)
        return progress, True
    batches = saved["grad_accumulation_steps"]
    if progress.update < saved["iters"] // batches:
        raise ValueError(
            f"{folder} holds an unfinished run, at iteration {progress.update * batches} of "
            f"{saved['iters']}. Go on with --resume; or choose another --adapter-path, or remove "
            f"{folder / STATE_FILE.parent}, to begin anew."
        )
    return Progress(), False
