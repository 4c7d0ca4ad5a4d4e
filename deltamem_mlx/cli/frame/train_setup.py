"""From the flags of `train` to a model with an adapter, episodes and a trainer."""

import math
from dataclasses import asdict, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import launched, output
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import load_plain
from deltamem_mlx.cli.frame.parse import json_object
from deltamem_mlx.cli.frame.session import template_kwargs
from deltamem_mlx.cli.options.train import TrainOptions
from deltamem_mlx.problems import shortened
from deltamem_mlx.training.settings import TrainSettings

if TYPE_CHECKING:
    import mlx.nn as nn
    from mlx_lm.tokenizer_utils import TokenizerWrapper

    from deltamem_mlx.config import DeltaMemConfig
    from deltamem_mlx.text.datasets import Splits
    from deltamem_mlx.training.dataset import DatasetReport, EpisodeDataset
    from deltamem_mlx.training.episode_settings import EpisodeSettings

DEFAULT_ITERS = TrainSettings.iters


@dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    model: "nn.Module"
    train: "EpisodeDataset"
    valid: "EpisodeDataset"
    test: "EpisodeDataset"
    report: "DatasetReport"
    settings: TrainSettings


def set_up(options: TrainOptions) -> Setup:
    """Load the data, then the model, and put an adapter on it.

    Raises:
        FileNotFoundError, ValueError: As the library says, in one sentence each.
    """
    from deltamem_mlx.model.patch import config_of
    from deltamem_mlx.text.datasets import load_conversations

    splits = load_conversations(str(options.data), seed=options.seed)
    if splits.held_out:
        output.note(f"No validation file: {len(splits.valid)} conversations are held out.")
    model, tokenizer = load_plain(
        str(options.model),
        trust_remote_code=options.trust_remote_code,
        tensor_parallel=options.tensor_parallel,
    )
    _put_adapter(model, options)
    episodes = episode_settings(options, config_of(model).memory_write_granularity)
    train, valid, test = _datasets(splits, tokenizer, episodes, options)
    report = train.report()
    for note in report.notes():
        output.warn(note)
    iters = options.iters or DEFAULT_ITERS
    if options.epochs is not None:
        iters = max(1, math.ceil(options.epochs * len(train) / options.batch_size))
    return Setup(model, train, valid, test, report, train_settings(options, iters))


def _put_adapter(model: "nn.Module", options: TrainOptions) -> None:
    from deltamem_mlx.training.checkpoint import STATE_FILE
    from deltamem_mlx.training.start import adapter_from, fresh_adapter

    values = adapter_values(options)
    config = adapter_config(values)
    name = str(options.model)
    source: str | Path | None = options.resume_adapter_file
    folder = options.adapter_path
    begun = (folder / STATE_FILE).is_file
    if options.resume and (launched.first(begun) if options.tensor_parallel else begun()):
        source = folder  # a run that goes on has the settings that it began with
    if source is None:
        fresh_adapter(model, config, seed=options.seed, base_model=name)
        return
    given = {key: getattr(config, key) for key in values}
    adapter_from(model, source, given=given, base_model=name)


def _datasets(
    splits: "Splits",
    tokenizer: "TokenizerWrapper",
    settings: "EpisodeSettings",
    options: TrainOptions,
) -> list["EpisodeDataset"]:
    from deltamem_mlx.training.dataset import EpisodeDataset

    kwargs = template_kwargs(options.chat_template_config)
    return [
        EpisodeDataset(rows, tokenizer, settings, template_kwargs=kwargs) for rows in splits[:3]
    ]


def check_any(options: TrainOptions) -> None:
    """Raise UsageError for flags that are wrong with and without data."""
    if options.model is None:
        raise UsageError("Missing: --model.")
    if options.resume and options.overwrite:
        raise UsageError("--resume and --overwrite: give one of them.")
    if options.adapter_path.is_file():
        raise UsageError(f"--adapter-path: {str(options.adapter_path)!r} is a file.")
    template_kwargs(options.chat_template_config)


def check(options: TrainOptions) -> None:
    """Raise UsageError for flags that are missing or do not go together."""
    check_any(options)
    if options.hours is not None:
        raise UsageError("--hours is for a course: leave --data out, or give --course as well.")
    if options.iters is not None and options.epochs is not None:
        raise UsageError("--iters and --epochs: give one of them.")
    if options.epochs is not None and not 0 < options.epochs < math.inf:
        raise UsageError(f"--epochs is {options.epochs}; expected a positive number.")
    adapter_config(adapter_values(options))
    train_settings(options, options.iters or DEFAULT_ITERS)
    episode_settings(options, "token")
    launched.first(lambda: _check_folder(options))


def _check_folder(options: TrainOptions) -> None:
    """Raise before anything is loaded if the output may not go where it is to go."""
    from deltamem_mlx.training.folder import STATE_FILE, one_run, refuse_to_replace

    folder, resume = options.adapter_path, options.resume
    try:
        refuse_to_replace(folder, resume=resume, overwrite=options.overwrite)
    except FileExistsError as error:
        raise UsageError(str(error)) from error
    if (folder / STATE_FILE.parent).is_dir():
        with one_run(folder):
            pass


def adapter_values(options: TrainOptions) -> dict[str, Any]:
    """The adapter's settings that were given."""
    from deltamem_mlx.config import DeltaMemConfig

    values = json_object("--adapter-settings", options.adapter_settings)
    known = [field.name for field in fields(DeltaMemConfig)]
    for name in values:
        if name not in known:
            near = get_close_matches(name, known, 3) or known
            raise UsageError(
                f"--adapter-settings: no setting {shortened(name)}; expected {', '.join(near)}."
            )
    names = ("rank", "alpha", "num_state_heads", "output_init", "beta_bias_init", "online_gain")
    values |= {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if options.write_granularity is not None:
        values["memory_write_granularity"] = options.write_granularity
    if options.delta_heads is not None:
        values["delta_heads"] = _list(options.delta_heads)
    if options.target_layers is not None:
        layers = _list(options.target_layers)
        if not all(layer.isdigit() for layer in layers):
            raise UsageError(f"--target-layers: {options.target_layers!r} is no list of layers.")
        values["target_layers"] = [int(layer) for layer in layers]
    return values


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def adapter_config(values: dict[str, Any]) -> "DeltaMemConfig":
    from deltamem_mlx.config import DeltaMemConfig

    try:
        return DeltaMemConfig(**{"delta_heads": ("q", "o"), **values})
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error


def train_settings(options: TrainOptions, iters: int) -> TrainSettings:

    names = TrainSettings.__dataclass_fields__.keys() & asdict(options).keys()
    try:
        return TrainSettings(**{name: getattr(options, name) for name in names} | {"iters": iters})
    except ValueError as error:
        raise UsageError(str(error)) from error


def episode_settings(options: TrainOptions, granularity: str) -> "EpisodeSettings":
    from deltamem_mlx.training.episode_settings import EpisodeSettings

    try:
        return EpisodeSettings(
            assistant_loss_mode=options.assistant_loss_mode,
            episode_recent_messages=options.episode_recent_messages,
            max_length=options.max_seq_length,
            max_write_length=options.max_write_length,
            sentences=granularity == "sentence_mean",
            taught=options.distill > 0,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
