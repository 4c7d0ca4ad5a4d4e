"""`deltamem-mlx train`: an adapter from conversations."""

from typing import TYPE_CHECKING

import typer

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.course_setup import check_course, course_of, is_course
from deltamem_mlx.cli.frame.errors import FAILED, INTERRUPTED, UsageError
from deltamem_mlx.cli.frame.train_setup import check, set_up
from deltamem_mlx.cli.frame.train_view import (
    finish,
    finish_course,
    listeners,
    show_plan,
    watching,
)
from deltamem_mlx.cli.options.train import TrainOptions

if TYPE_CHECKING:
    from deltamem_mlx.training.trainer import Outcome as TrainOutcome


@command(
    "deltamem-mlx train --model Qwen/Qwen3-0.6B --adapter-path adapters/mine --hours 8",
    "deltamem-mlx train --model Qwen/Qwen3-4B-Instruct-2507 --data conversations/ "
    "--adapter-path adapters/mine --iters 200",
    "deltamem-mlx train -c train.yaml --resume",
    "deltamem-mlx train --model MODEL --data more/ --resume-adapter-file adapters/mine "
    "--adapter-path adapters/mine-2 --learning-rate 5e-5",
    "mlx.launch -n 2 deltamem-mlx train --model MODEL --data conversations/",
)
def train(options: TrainOptions) -> None:
    """Make an adapter: without any data, or from conversations.

    Without --data the package's own course makes an adapter for any chat model, within about
    --hours: the model writes conversations, an adapter is fitted and trained on facts, ordinary
    talk and silence, and measured. The same command goes on where it was stopped.

    With --data: of every conversation, the older messages are written into the memory and dropped,
    and a reply is learned with the rest in view: the adapter learns what to keep. The model stays
    as it is.

    The output folder holds a working adapter from the first moment on, numbered copies, metrics
    and a curve. Ctrl-C saves; --resume goes on.
    """
    if is_course(options):
        check_course(options)
        _course(options)
        return
    check(options)

    import mlx.core as mx

    first = mx.distributed.init().rank() == 0
    output.settings.quiet |= not first
    outcome = _train(options, first)
    if not outcome.finished:
        raise typer.Exit(INTERRUPTED)


def _train(options: TrainOptions, first: bool) -> "TrainOutcome":
    """The run; ``first``: this process is the one that speaks."""
    setup = set_up(options)
    if options.test and not len(setup.test):
        raise UsageError(f"--test: {options.data} has no test.jsonl.")
    from deltamem_mlx.training.trainer import Trainer

    trainer = Trainer(
        setup.model,
        setup.train,
        setup.valid,
        setup.settings,
        options.adapter_path,
        listeners=listeners(options) if first else (),
        resume=options.resume,
        overwrite=options.overwrite,
    )
    if options.resume and not trainer.resumed:
        output.note(f"No run to resume in {options.adapter_path}: it begins anew.")
    show_plan(options, setup, trainer)
    scored = None
    try:
        with watching(trainer):
            outcome = trainer.run()
            if options.test and outcome.finished and len(setup.test):
                scored = trainer.evaluate(setup.test, most=options.test_batches).ce
    except ArithmeticError as error:
        output.fail(str(error))
        raise typer.Exit(FAILED) from error
    if first:
        finish(options, outcome, scored)
    return outcome


def _course(options: TrainOptions) -> None:
    """The package's own course."""
    from deltamem_mlx.training.course.steps import Stopped

    try:
        found = course_of(options).run()
        if found is None:  # this process trained along
            return
    except Stopped as error:
        without = " without --overwrite" if options.overwrite else ""
        output.note(f"Everything is saved; the same command{without} goes on.")
        raise typer.Exit(INTERRUPTED) from error
    except ArithmeticError as error:
        output.fail(str(error))
        raise typer.Exit(FAILED) from error
    if options.json:
        results = {name: step["result"] for name, step in found.results.items()}
        output.result_json({"adapter_path": str(found.folder), "steps": results})
        return
    output.result(found.page)
    finish_course(options)
