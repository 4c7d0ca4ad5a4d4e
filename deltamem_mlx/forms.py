"""The forms that an adapter has on disk, and which of them a folder holds.

Each form is a file of settings and one of weights. They are always taken from the same form, so
that nobody's weights are read with another adapter's settings.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .files import read_json
from .problems import shortened

FINE_TUNE_TYPE = "delta_mem"


class AdapterForm(NamedTuple):
    """Names of the files of a form."""

    name: str
    config: str
    weights: str

    @property
    def files(self) -> tuple[str, str]:
        """Settings and weights."""
        return self.config, self.weights


MLX_LM = AdapterForm("mlx-lm", "adapter_config.json", "adapters.safetensors")
PUBLISHED = AdapterForm("published", "delta_mem_config.json", "delta_mem_adapter_mlx.npz")
PYTORCH = AdapterForm("pytorch", "delta_mem_config.json", "delta_mem_adapter.pt")
FORMS = (MLX_LM, PUBLISHED, PYTORCH)
ADAPTER_NAMES = tuple(dict.fromkeys(name for form in FORMS for name in form.files))


def files_there(folder: Path) -> tuple[str, ...]:
    """Names of the adapter files, of any form, that are in ``folder``."""
    return tuple(name for name in ADAPTER_NAMES if (folder / name).exists())


def is_delta_mem(folder: str | Path) -> bool:
    """Whether ``folder`` holds the settings of a δ-mem adapter, in any form."""
    folder = Path(folder)
    if (folder / PUBLISHED.config).is_file():
        return True
    return (folder / MLX_LM.config).is_file() and fine_tune_type(folder) == FINE_TUNE_TYPE


def fine_tune_type(folder: Path) -> str:
    """What mlx-lm's form in ``folder`` says that it is; like mlx-lm, LoRA if nothing."""
    kind = read_json(folder / MLX_LM.config).get("fine_tune_type", "lora")
    return kind if isinstance(kind, str) else shortened(kind)


def form_in(folder: Path) -> AdapterForm:
    """The form in which a folder holds its adapter; the published one goes before PyTorch's.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds two adapters, or one of another kind.
    """
    whole = [form for form in FORMS if all((folder / name).is_file() for name in form.files)]
    if not whole:
        config = config_in(folder)
        pairs = " or ".join(f"{form.weights} beside {form.config}" for form in FORMS)
        raise FileNotFoundError(
            f"{folder} holds a δ-mem config, {config}, but no weights for it: expected {pairs}."
        )
    if len({form.config for form in whole}) > 1:
        raise ValueError(_two(folder))
    if whole[0] is MLX_LM:
        _refuse_other_kinds(folder)
    return whole[0]


def config_in(folder: Path) -> str:
    """Name of the file with the settings of the adapter in ``folder``, its weights there or not.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several that could be meant, or it is another kind of adapter's.
    """
    there = files_there(folder)
    whole = {form.config for form in FORMS if all(name in there for name in form.files)}
    found = whole or {form.config for form in FORMS if form.config in there}
    if not found:
        model = " It holds a model: are the two swapped?" if _is_model(folder) else ""
        raise FileNotFoundError(
            f"{folder} holds neither {PUBLISHED.config} nor {MLX_LM.config}.{model}"
        )
    if len(found) > 1:
        raise ValueError(_two(folder))
    [config] = found
    if config == MLX_LM.config:
        _refuse_other_kinds(folder)
    return config


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def settings_of(path: Path, values: Mapping[str, object]) -> Mapping[str, object]:
    """The δ-mem settings among the values of a file of settings.

    Raises:
        ValueError: If they are no JSON object.
    """
    settings = values.get("delta_mem", {}) if path.name == MLX_LM.config else values
    if not isinstance(settings, dict):
        raise ValueError(f"{path}: delta_mem: {shortened(settings)}, expected an object.")
    return settings


def _refuse_other_kinds(folder: Path) -> None:
    kind = fine_tune_type(folder)
    if kind != FINE_TUNE_TYPE:
        raise ValueError(
            f"{folder} holds an adapter of type {shortened(kind)}, expected {FINE_TUNE_TYPE!r}. "
            "Load it with mlx_lm.load(..., adapter_path=...)."
        )


def _two(folder: Path) -> str:
    return (
        f"{folder} holds the files of two adapters ({', '.join(files_there(folder))}), so that it "
        "is not clear which one is meant. Remove those of one."
    )
