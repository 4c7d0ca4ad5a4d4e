"""What a course will do, and how long that will take: from the hours given and a machine's pace."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .measures import CELLS, CONDITIONS, MeasureSizes
from .pace import MachinePace
from .stages import Stage
from .stock import Wanted

# Shares of the time.
WRITING, STARTING, CHOOSING, TRAINING, MEASURING = 0.06, 0.06, 0.06, 0.67, 0.15
STARTS, QUIETED = 33, 8  # readings of what is held out of the first training, and of the second
VALIDATING = 1.2  # of a training's time: validations, checkpoints
LEAST = 8  # iterations of a training
QUESTION, ORDINARY = 12, 25_000  # tokens of an answer; of ordinary text that is recorded


@dataclass(frozen=True)
class CoursePlan:
    """All that the weights at the end follow from, beside the model and own data.

    Args:
        wanted (Wanted): What the model writes first.
        recorded (int): Conversations that the closed-form start is fitted to.
        judged (int): Held-out conversations on which adapters are compared.
        stages (tuple[Stage, ...]): The trainings.
        iters (tuple[int, ...]): Of each.
        measured (MeasureSizes): What is measured at the end.
    """

    wanted: Wanted
    recorded: int
    judged: int
    stages: tuple[Stage, ...]
    iters: tuple[int, ...]
    measured: MeasureSizes


def plan_for(
    hours: float, pace: MachinePace, sizes: Sequence[float], stages: Sequence[Stage]
) -> CoursePlan:
    """A plan that takes about so many hours.

    Args:
        hours (float): For all of it.
        pace (MachinePace): Of the machine.
        sizes (Sequence[float]): Tokens a conversation of each stage, of both passes.
        stages (Sequence[Stage]): The trainings.
    """
    seconds = 3600 * hours
    size, judged = sizes[0], STARTS * sizes[0] + QUIETED * _next(sizes)
    whole = Wanted(talk=300, texts=256, asked=300)
    share = min(1.0, WRITING * seconds / (writing_tokens(whole) / pace.spoken))
    wanted = Wanted(*(max(24, round(share * count)) for count in whole))
    iters, allowed = [], training_seconds(hours, stages)
    for stage, own in zip(stages, sizes, strict=True):
        each = stage.batch_size * own * VALIDATING / pace.trained
        iters.append(iterations_in(allowed[stage.name], each, stage))
    answers = len(CELLS) * len(CONDITIONS) * QUESTION / pace.spoken
    reading = MEASURING * seconds * pace.judged
    return CoursePlan(
        wanted=wanted,
        recorded=_within(STARTING * seconds * pace.judged / size, 120, 700),
        judged=_within(CHOOSING * seconds * pace.judged / judged, 8, 64),
        stages=tuple(stages),
        iters=tuple(iters),
        measured=MeasureSizes(
            questions=_within(0.6 * MEASURING * seconds / answers, 8, 128),
            windows=_within(0.15 * reading / (2 * 512), 2, 16),
            histories=_within(0.25 * reading / 2500, 1, 8),
            chat_tokens=2000,
        ),
    )


def training_seconds(hours: float, stages: Sequence[Stage]) -> Mapping[str, float]:
    """How long each training of a course of so many hours may take, by name."""
    return {stage.name: TRAINING * stage.share * 3600 * hours for stage in stages}


def iterations_in(seconds: float, each: float, stage: Stage) -> int:
    """How many iterations of a stage, each of so many seconds, fit in a time."""
    return _within(seconds / each, LEAST, stage.most)


def seconds_of(
    plan: CoursePlan, pace: MachinePace, sizes: Sequence[float], wanted: Wanted | None = None
) -> Mapping[str, float]:
    """How long the steps of a plan take, by name; ``wanted`` is what there is to write."""
    judging = plan.judged / pace.judged
    asked = (
        plan.measured.questions
        * len(plan.measured.cells)
        * len(CONDITIONS)
        * QUESTION
        / pace.spoken
    )
    read = plan.measured.windows * 2 * 512 + plan.measured.histories * 2500
    found = {
        "write": writing_tokens(wanted or plan.wanted) / pace.spoken,
        "start": plan.recorded * sizes[0] / pace.judged + STARTS * sizes[0] * judging,
        "quiet": (0.3 * plan.recorded * sizes[0] + ORDINARY) / pace.judged
        + QUIETED * _next(sizes) * judging,
        "measure": asked + read / pace.judged,
    }
    for stage, iters, own in zip(plan.stages, plan.iters, sizes, strict=True):
        found[stage.name] = iters * stage.batch_size * own * VALIDATING / pace.trained
    return found


def writing_tokens(wanted: Wanted) -> int:
    """Tokens that are generated, at most."""
    return 40 * wanted.talk + 120 * wanted.texts + 10 * (wanted.asked + wanted.asked // 2)


def _next(sizes: Sequence[float]) -> float:
    """Tokens a conversation of the second training, if there is one."""
    return sizes[min(1, len(sizes) - 1)]


def _within(wanted: float, least: int, most: int) -> int:
    return max(least, min(most, int(wanted)))
