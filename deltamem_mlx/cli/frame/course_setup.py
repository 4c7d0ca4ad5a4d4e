"""From the flags of `train` to the package's own course, and what that refuses."""

import math
from dataclasses import fields
from typing import TYPE_CHECKING

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import load_plain
from deltamem_mlx.cli.frame.session import template_kwargs
from deltamem_mlx.cli.frame.train_setup import check_any
from deltamem_mlx.cli.options.train import TrainOptions

if TYPE_CHECKING:
    from deltamem_mlx.text.rows import ConversationRow
    from deltamem_mlx.training.course.course import Course

# What one may choose of a course; it chooses all else by what it measures.
CHOOSABLE = {
    "model",
    "data",
    "course",
    "hours",
    "adapter_path",
    "resume",
    "overwrite",
    "seed",
    "grad_checkpoint",
    "chat_template_config",
    "trust_remote_code",
    "json",
}


def is_course(options: TrainOptions) -> bool:
    """Whether the package's own course is asked for."""
    return options.course or options.data is None


def check_course(options: TrainOptions) -> None:
    """Raise UsageError for flags that a course has no use for, before anything is loaded."""
    from deltamem_mlx.training.course.course import refuse_foreign

    check_any(options)
    given = [
        "--" + field.name.replace("_", "-")
        for field in fields(options)
        if field.name not in CHOOSABLE and getattr(options, field.name) != field.default
    ]
    if given:
        listed = ", ".join(given)
        raise UsageError(
            f"{listed}: the course that `train` runs without --data chooses that itself. Leave "
            "it out, or give --data without --course."
        )
    if options.hours is not None and not 0 < options.hours < math.inf:
        raise UsageError(f"--hours is {options.hours}; expected a positive number.")
    try:
        launched.first(lambda: refuse_foreign(options.adapter_path, overwrite=options.overwrite))
    except FileExistsError as error:
        raise UsageError(str(error)) from error


def course_of(options: TrainOptions) -> "Course":
    """The course, its model loaded.

    Raises:
        FileNotFoundError, ValueError: As the library says, in one sentence each.
    """
    from deltamem_mlx.cli.frame.course_view import CourseView
    from deltamem_mlx.training.course.course import HOURS, Course

    own = [] if launched.follows() else _own_rows(options)
    model, tokenizer = load_plain(str(options.model), trust_remote_code=options.trust_remote_code)
    return Course(
        model,
        tokenizer,
        options.adapter_path,
        name=_name(str(options.model)),
        hours=HOURS if options.hours is None else options.hours,
        seed=options.seed,
        own=own,
        template_kwargs=template_kwargs(options.chat_template_config),
        overwrite=options.overwrite,
        grad_checkpoint=options.grad_checkpoint,
        viewer=CourseView(str(options.model), options.adapter_path),
        ranks=launched.world(),
    )


def _name(model: str) -> str:
    """The model's name; of the built-in one, where it lies."""
    from deltamem_mlx import builtin

    return str(builtin.base_folder()) if model == "builtin" else model


def _own_rows(options: TrainOptions) -> list["ConversationRow"]:
    from deltamem_mlx.text.datasets import load_conversations

    if options.data is None:
        return []
    rows = load_conversations(str(options.data), seed=options.seed, valid_fraction=0).train
    output.note(f"{len(rows):,} conversations of your own stand beside the course's.")
    return list(rows)
