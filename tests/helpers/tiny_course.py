"""A course of a few iterations on the built-in model: a plan that no user can ask for.

python tests/helpers/tiny_course.py OUT [ITERS]

In several processes of mlx.launch it trains in all of them.
"""

import sys
from dataclasses import replace
from pathlib import Path

import mlx.core as mx

from deltamem_mlx import builtin, load
from deltamem_mlx.evals.recall.episodes import Cell
from deltamem_mlx.ranks import Ranks
from deltamem_mlx.training.course.course import Course, Finished
from deltamem_mlx.training.course.language import TalkShape
from deltamem_mlx.training.course.measures import MeasureSizes
from deltamem_mlx.training.course.plan import CoursePlan
from deltamem_mlx.training.course.stages import LITTLE
from deltamem_mlx.training.course.stock import Wanted

BASE = str(builtin.base_folder())


def tiny_plan(iters: int = 2) -> CoursePlan:
    """So many iterations a stage, and as little as can be of everything else."""
    shape = TalkShape((1, 2), 2, chats=2)
    stages = [replace(stage, batch_size=4, shape=shape) for stage in (LITTLE[0], LITTLE[2])]
    return CoursePlan(
        wanted=Wanted(talk=4, texts=0, asked=4),
        recorded=30,
        judged=4,
        stages=tuple(stages),
        iters=(iters,) * len(stages),
        measured=MeasureSizes(
            questions=2, windows=1, histories=1, chat_tokens=40, cells=(Cell("told", 1, 0),)
        ),
    )


def run_tiny(folder: Path, iters: int = 2, **settings: object) -> Finished | None:
    """A whole course, or the rest of one."""
    model, tokenizer = load(BASE)
    given = {"name": BASE, "plan": tiny_plan(iters)} | settings
    return Course(model, tokenizer, folder, **given).run()


if __name__ == "__main__":
    several = Ranks(mx.distributed.init())
    run_tiny(Path(sys.argv[1]), *map(int, sys.argv[2:]), ranks=several)
