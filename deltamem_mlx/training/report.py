"""What a run tells: to listeners, to metrics.jsonl, and as a curve in loss.png."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import mlx.core as mx
from mlx_lm.tuner.callbacks import TrainingCallback

from ..files import WriteError, json_lines, write_atomically, write_text
from .update import Figures

Info = dict[str, float | int | None]

METRICS_FILE = "metrics.jsonl"
CURVE_FILE = "loss.png"
_CURVES = {  # name in the metrics → label, colour, dashes
    "train_loss": ("training", "#b5b5b5", "-"),
    "val_loss": ("held out", "#2166ac", "-"),
    "val_loss_foreign": ("held out, another conversation's memory", "#d95f02", "--"),
}


class Listener(TrainingCallback):
    """Told how a run goes. mlx-lm's callbacks (wandb, swanlab) hear the two reports as well.

    ``info`` holds numbers by name, ``iteration`` among them.
    """

    def on_step(self, info: Info) -> None:
        """After every update of the weights."""

    def on_validation_batch(self, done: int, total: int) -> None:
        """While validating."""

    def on_interrupt(self) -> None:
        """When Ctrl-C was pressed; the update that is under way still ends."""

    def on_save(self, folder: Path, iteration: int) -> None:
        """After a checkpoint."""


class Metrics(Listener):
    """Appends every report to ``metrics.jsonl``.

    Args:
        folder (Path): Where the file lies.
        iteration (int): Lines of later iterations are dropped: a resumed run writes them again.
    """

    def __init__(self, folder: Path, iteration: int = 0) -> None:
        self.path = folder / METRICS_FILE
        kept = [row for row in read_metrics(folder) if (row["iteration"] or 0) <= iteration]
        write_text(self.path, "".join(map(_line, kept)))

    def on_train_loss_report(self, train_info: Info) -> None:
        self._append(train_info)

    def on_val_loss_report(self, val_info: Info) -> None:
        self._append(val_info)

    def _append(self, info: Info) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(info))
        except OSError as error:
            raise WriteError(f"{self.path} could not be written: {error.strerror}.") from error


def train_info(window: Sequence[Figures], iterations: int, seconds: float) -> Info:
    """A report of some updates: mlx-lm's names, then those of the memory."""
    last, tokens = window[-1], sum(figures.tokens for figures in window)
    labelled = max(sum(figures.labelled for figures in window), 1)
    return kl_info("train", window) | {
        "train_loss": sum(figures.ce * figures.labelled for figures in window) / labelled,
        "learning_rate": last.learning_rate,
        "iterations_per_second": iterations / seconds,
        "tokens_per_second": tokens / seconds,
        "peak_memory": mx.get_peak_memory() / 1e9,
        "beta": last.write_beta,
        "read_beta": last.read_beta,
        "state_norm": last.state_norm,
        "grad_norm": last.grad_norm,
    }


def kl_info(name: str, window: Sequence[Figures]) -> Info:
    """Divergences from the teachers there were: with the history in its context, and without."""
    found: Info = {}
    for i, kind in enumerate(("context", "unrelated")):
        if taught := sum(figures.taught[i] for figures in window):
            kl = sum(figures.kl[i] * figures.taught[i] for figures in window)
            found[f"{name}_kl_{kind}"] = kl / taught
    return found


def _line(info: Info) -> str:
    return json.dumps(info) + "\n"


def read_metrics(folder: Path) -> list[Info]:
    """The reports in a folder, in order; a line cut short by a killed process is left out."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return []
    found = (line.value for line in json_lines(path))
    return [row for row in found if isinstance(row, dict) and _is_report(row)]


def _is_report(row: Mapping[str, object]) -> bool:
    """Whether a line says numbers of an iteration, as those of a run do."""
    numbers = (v is None or (isinstance(v, int | float) and abs(v) < 1e300) for v in row.values())
    return isinstance(row.get("iteration"), int) and all(numbers)


def draw_curve(folder: Path) -> bool:
    """Draw the losses in ``metrics.jsonl`` as ``loss.png``; ``False`` without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    rows = read_metrics(folder)
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for key, (label, color, dashes) in _CURVES.items():
        points = [(row["iteration"], row[key]) for row in rows if row.get(key) is not None]
        if points:
            marker = "." * (len(points) < 40)
            axes.plot(
                *zip(*points, strict=True), label=label, color=color, ls=dashes, marker=marker
            )
    both = [row for row in rows if None not in (row.get("val_loss"), row.get("val_loss_foreign"))]
    if both:
        names = ("iteration", "val_loss", "val_loss_foreign")
        at, own, foreign = (_numbers(both, name) for name in names)
        axes.fill_between(at, own, foreign, color="#2166ac", alpha=0.15, lw=0,
                          label="what the memory itself is worth")  # fmt: skip
    without = _last(rows, "val_loss_without")
    if without is not None:
        axes.axhline(without, label="held out, empty memory", color="#666666", linestyle=":")
    axes.set_title("Loss, and how much of it the memory takes away", loc="left", weight="bold")
    axes.set(xlabel="iteration", ylabel="cross-entropy (nats a token)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, fontsize=9, ncols=2, loc="outside lower center")
    axes.grid(color="#e8e8e8")
    axes.set_axisbelow(True)
    write_atomically(folder / CURVE_FILE, lambda path: figure.savefig(path, dpi=120))
    return True


def _numbers(rows: Sequence[Info], key: str) -> list[float]:
    return [value for row in rows if (value := row.get(key)) is not None]


def _last(rows: Sequence[Info], key: str) -> float | None:
    return next(reversed(_numbers(rows, key)), None)
