"""Run by `mlx.launch`: checks of models that lie in several processes, all in one go.

usage: spread_cases.py FOLDER CASE...

A case is CHECK/WAY/NAME: ``model/tensor/llama``, ``golden/pipeline/tsw_qo``. Writes
FOLDER/<rank>.json: for each case what was found.
"""

import json
import sys
import warnings
from pathlib import Path

import mlx.core as mx
import spread_actions
import spread_golden
import spread_models
import spread_sessions

CHECKS = {
    "model": spread_models.compared,
    "fresh": spread_models.fresh,
    "golden": spread_golden.replayed,
    "actions": spread_actions.compared,
    "session": spread_sessions.compared,
}


def found(case: str, folder: Path, group: mx.distributed.Group) -> dict:
    check, way, name = case.split("/")
    return CHECKS[check](name, way, folder / check / way, group)


def main(folder: Path, cases: list[str]) -> None:
    warnings.simplefilter("ignore")
    mx.set_default_device(mx.cpu)
    group = mx.distributed.init(strict=True)
    report = {case: found(case, folder, group) for case in cases}
    (folder / f"{group.rank()}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
