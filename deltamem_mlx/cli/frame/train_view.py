"""What `train` shows: a table before, a bar and lines during, where the adapter is after."""

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.train_setup import Setup
from deltamem_mlx.cli.options.train import TrainOptions

if TYPE_CHECKING:
    from mlx_lm.tuner.callbacks import TrainingCallback

    from deltamem_mlx.training.report import Info
    from deltamem_mlx.training.trainer import Outcome, Trainer


def listeners(options: TrainOptions) -> list["TrainingCallback"]:
    """mlx-lm's callbacks for `--report-to`."""
    from mlx_lm.tuner.callbacks import get_reporting_callbacks

    plain: Any = {name: str(v) if isinstance(v, Path) else v for name, v in asdict(options).items()}
    folder = str(options.adapter_path)
    found = get_reporting_callbacks(options.report_to, options.project_name, folder, plain)
    return [] if found is None else [found]


def show_plan(options: TrainOptions, setup: Setup, trainer: "Trainer") -> None:
    """A table of what will be trained, on stderr."""
    if output.settings.quiet:
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in _rows(options, setup, trainer):
        table.add_row(name, text)
    output.stderr.print(table, highlight=False)


def _rows(options: TrainOptions, setup: Setup, trainer: "Trainer") -> Iterator[tuple[str, str]]:
    from deltamem_mlx.model.patch import config_of
    from deltamem_mlx.training.plan import plan_of

    plan = plan_of(setup.model, setup.report, setup.settings, trainer.updater.part[1])
    config, s, report = config_of(setup.model), setup.settings, setup.report
    yield "model", f"{options.model}, {plan.total / 1e6:,.1f} M parameters"
    yield (
        "adapter",
        f"{plan.trained:,} parameters ({plan.trained / plan.total:.2%} of the model), all that is "
        f"trained: rank "
        f"{config.rank}, {config.num_state_heads} state(s) in {plan.patched} of {plan.layers} "
        f"layers, heads {', '.join(config.delta_heads)}, {config.memory_write_granularity} writes",
    )
    yield (
        "data",
        f"{report.conversations:,} conversations, {report.episodes:,} episodes, "
        f"{len(setup.valid):,} held out",
    )
    if report.unrelated:
        yield (
            "unrelated",
            f"{report.unrelated:,} episodes with replies of which the plain model is learned",
        )
    yield (
        "tokens",
        f"{plan.tokens:,} an epoch: {report.write_tokens:,} written, {report.read_tokens:,} read, "
        f"{report.supervised_tokens:,} learned",
    )
    whole = s.batch_size * s.grad_accumulation_steps
    yield (
        "run",
        f"{trainer.iterations:,} iterations, {plan.epochs:.1f} epochs, {whole} episodes an update "
        f"({trainer.group.size()} process(es)), learning rate {s.learning_rate:g}, {s.lr_schedule}",
    )
    yield "memory", f"about {plan.memory / 1e9:.1f} GB" + _advice(plan.memory, s.grad_checkpoint)
    where = f", from iteration {trainer.iteration}" if trainer.resumed else ""
    yield "output", f"{options.adapter_path}{where}"


def _advice(memory: int, checkpointed: bool) -> str:
    import mlx.core as mx

    most = mx.device_info().get("memory_size")
    if not isinstance(most, int) or memory < most or checkpointed:
        return ""
    return f" of {most / 1e9:.0f} GB: --grad-checkpoint or a smaller --batch-size takes less"


@contextmanager
def watching(trainer: "Trainer") -> Iterator[None]:
    """Within this context the run's reports are lines on stderr, above a progress bar."""
    from deltamem_mlx.training.report import Listener

    if output.settings.quiet:
        yield
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=output.stderr,
        transient=True,
    )
    task = bar.add_task("training", total=trainer.iterations, figures="", start=False)

    class Lines(Listener):
        def on_step(self, info: "Info") -> None:
            if not bar.tasks[0].started:
                bar.start_task(task)
            bar.update(task, completed=info["iteration"], figures=_figures(info))

        def on_validation_batch(self, done: int, total: int) -> None:
            name = "training" if done == total else f"validating {done}/{total}"
            bar.update(task, description=name)

        def on_interrupt(self) -> None:
            say("Stopping after this iteration; Ctrl-C again stops at once.")

        def on_train_loss_report(self, train_info: "Info") -> None:
            say(f"{_at(train_info)}  {_figures(train_info)}, lr {train_info['learning_rate']:.2e}")

        def on_val_loss_report(self, val_info: "Info") -> None:
            say(
                f"{_at(val_info)}  held out {val_info['val_loss']:.4f},{_far(val_info, 'val')} ("
                + _beside(val_info["val_loss_without"], val_info["val_loss_foreign"])
                + ")"
            )

    def say(text: str) -> None:
        bar.console.print(text, markup=False, highlight=False, soft_wrap=True)

    bar.update(task, completed=trainer.iteration)
    trainer.listeners.append(Lines())
    with bar:
        yield


def _at(info: "Info") -> str:
    return f"{info['iteration']:>6}"


def _figures(info: "Info") -> str:
    return (
        f"loss {info['train_loss']:.4f},{_far(info, 'train')} β {info['beta']:.3f}, "
        f"state {info['state_norm']:.2f}, {info['tokens_per_second']:,.0f} tokens/s"
    )


def _far(info: "Info", name: str) -> str:
    """How far the answers are from the teachers', in nats, where there are any."""
    teachers = {"kl_context": "its context", "kl_unrelated": "silence"}
    found = {said: info.get(f"{name}_{key}") for key, said in teachers.items()}
    return "".join(f" {kl:.3f} from {said}," for said, kl in found.items() if kl is not None)


def finish(options: TrainOptions, outcome: "Outcome", test_loss: float | None) -> None:
    """Where the adapter is and how to use it; after Ctrl-C, how to go on."""
    folder = str(options.adapter_path)
    if not outcome.finished:
        output.note(f"Stopped at iteration {outcome.iteration}; everything is saved in {folder}.")
        output.note(f"Go on with: {_resume_command()}")
        return
    if warning := _nothing_remembered(outcome):
        output.warn(warning)
    if options.json:
        output.result_json(outcome._asdict() | {"adapter_path": folder, "test_loss": test_loss})
        return
    if outcome.trained:
        output.note(_summary(outcome, test_loss))
    else:
        output.note(
            f"This run had ended already, at iteration {outcome.iteration}: nothing was trained. "
            f"Train further with --resume-adapter-file {shlex.quote(folder)} and another "
            "--adapter-path."
        )
    _show_use(options)


def finish_course(options: TrainOptions) -> None:
    """Where the adapter of a course is, its card, and how to use it."""
    output.result(f"\nThis is also its card, {options.adapter_path / 'README.md'}.")
    _show_use(options)


def _show_use(options: TrainOptions) -> None:
    folder = str(options.adapter_path)
    words = ["deltamem-mlx", "generate", "--model", str(options.model), "--adapter", folder]
    output.result(f"The adapter is in {folder}. Use it:")
    output.result("  " + shlex.join([*words, "--remember", "notes.txt", "--prompt", "..."]))


def _beside(without: float | None, foreign: float | None) -> str:
    """The held-out loss under the controls; of one conversation there is no other's memory."""
    said = f"{without:.4f} with an empty memory"
    return said if foreign is None else f"{said}, {foreign:.4f} with another conversation's"


def _nothing_remembered(outcome: "Outcome") -> str:
    """What to say if the held-out loss does not depend on whose memory is read; empty: it does."""
    loss, foreign = outcome.val_loss, outcome.val_loss_foreign
    if loss is None or foreign is None or foreign - loss > max(0.001, 0.01 * loss):
        return ""
    return (
        f"The held-out loss is {loss:.4f} with a conversation's own memory and {foreign:.4f} with "
        "another's: the adapter has learned how replies look, not yet what was told. Train longer, "
        "on more conversations whose replies depend on their history."
    )


def _summary(outcome: "Outcome", test_loss: float | None) -> str:
    parts = [f"{outcome.iteration} iterations in {outcome.seconds:.0f} s"]
    parts += [f"at most {outcome.peak_memory / 1e9:.2f} GB"]
    if outcome.val_loss is not None:
        parts.append(
            f"held-out loss {outcome.val_loss:.4f}, "
            + _beside(outcome.val_loss_without, outcome.val_loss_foreign)
        )
    if test_loss is not None:
        parts.append(f"test loss {test_loss:.4f}")
    return "; ".join(parts) + "."


def _resume_command() -> str:
    words = sys.argv[1:] if "train" in sys.argv[1:2] else ["train", "..."]
    words = [word for word in words if word != "--overwrite"]  # or it would begin anew
    return shlex.join(["deltamem-mlx", *words, *(["--resume"] * ("--resume" not in words))])
