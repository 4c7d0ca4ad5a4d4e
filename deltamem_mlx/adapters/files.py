"""Adapters on disk: three forms of the same tensors and settings, read and written."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import mlx.core as mx

from .._version import __version__
from ..config import DeltaMemConfig
from ..files import expanded, read_json, write_atomically, write_text
from ..forms import (
    FINE_TUNE_TYPE,
    FORMS,
    MLX_LM,
    PUBLISHED,
    AdapterForm,
    files_there,
    fine_tune_type,
    form_in,
    settings_of,
)
from ..model.names import public_name
from ..problems import first_few, misfits, optional, shortened, text_field, whole_number
from .weights import Seal, Tensors, read_weights, sealed, write_npz, write_safetensors

WRITTEN = {form.name: form for form in (MLX_LM, PUBLISHED)}
WEIGHTS_KEY = "weights_sha256"
NUMBERED = "numbered copy"  # in the seal of weights that go with a folder's settings at any time
_BASE_MODEL = {
    "name": optional(text_field(4096)),
    "model_type": optional(text_field(256)),
    "num_layers": optional(whole_number()),
    "hidden_size": optional(whole_number()),
}


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter as read from disk.

    Args:
        folder (Path): Where it was read from.
        config (DeltaMemConfig): Its settings.
        tensors (dict[str, mx.array]): float32, by ``model.layers.<i>.self_attn.<name>``.
        base_model (dict[str, object]): What is known of the model it was trained on.
    """

    folder: Path
    config: DeltaMemConfig
    tensors: Tensors
    base_model: dict[str, object]

    @property
    def base_name(self) -> str | None:
        """The name of the model it was trained on, where that is known."""
        name = self.base_model.get("name")
        return name if isinstance(name, str) and name else None


def read_adapter(folder: str | Path) -> AdapterFiles:
    """Read the adapter in ``folder``, recognising its form by its files.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the folder holds another kind of adapter or two of them, a file is damaged,
          or settings and weights were not written together.
        ImportError: If the adapter is in the PyTorch form and torch is not installed.
    """
    folder = Path(folder)
    form = form_in(folder)
    return _read(folder, folder / form.config, folder / form.weights)


def refuse_adapter(folder: Path) -> Path:
    """The folder, unless it holds an adapter where a model is to be.

    Raises:
        FileNotFoundError: If it does.
    """
    names = {name for form in FORMS for name in form.files}
    if not (folder / "config.json").exists() and any((folder / name).exists() for name in names):
        raise FileNotFoundError(
            f"{folder} holds an adapter, not a model. The model comes first: dm.load(model, "
            "adapter); --model MODEL --adapter ADAPTER."
        )
    return folder


def read_copy(weights: Path) -> AdapterFiles:
    """Read a numbered copy of a run: a ``.safetensors`` file beside ``adapter_config.json``.

    Raises:
        FileNotFoundError, ValueError: As ``read_adapter``.
    """
    return _read(weights.parent, weights.parent / MLX_LM.config, weights)


def _read(folder: Path, config_path: Path, weights_path: Path) -> AdapterFiles:
    tensors, seal = read_weights(weights_path)
    values = _together(config_path, weights_path, seal)
    try:
        config = DeltaMemConfig.from_dict(settings_of(config_path, values))
    except (TypeError, ValueError) as error:
        raise type(error)(f"The adapter in {folder} has an unusable config. {error}") from error
    base_model = _base_model(config_path, values)
    return AdapterFiles(folder, config, _finite(weights_path, tensors), base_model)


def _together(config_path: Path, weights_path: Path, seal: Seal | None) -> Mapping[str, object]:
    """The values of the file of settings that the weights go with.

    Weights appear first, and with them their adapter is whole: where a writer was stopped then,
    the settings are taken from their seal.
    """
    values = read_json(config_path)
    named = values.get(WEIGHTS_KEY)
    if seal is None:
        # Of version 0.1.0, of another program, or a numbered copy of such a run.
        if named is None or weights_path.name != MLX_LM.weights:
            return values
        raise ValueError(
            f"{weights_path} has no checksum, and {config_path.name} names one: they were not "
            f"written together. Fetch or write both again; if the weights are meant to be others, "
            f"remove {WEIGHTS_KEY!r} from {config_path.name}."
        )
    elif named == seal.sha256:
        return values
    elif isinstance(written := json.loads(seal.settings), dict):
        same = settings_of(config_path, values) == settings_of(config_path, written)
        if same and (named is None or seal.replaces == NUMBERED):
            return values
        if hashlib.sha256(config_path.read_bytes()).hexdigest() == seal.replaces:
            return written
    raise ValueError(
        f"{config_path} and {weights_path.name} were not written together: they are of different "
        "adapters. Fetch or write both again."
    )


def _base_model(path: Path, values: Mapping[str, object]) -> dict[str, object]:
    known = values.get("base_model", {}) if path.name == MLX_LM.config else {}
    problems = ["it is no object"]
    if isinstance(known, dict):
        problems = misfits({name: known.get(name) for name in _BASE_MODEL}, _BASE_MODEL)
        if not problems:
            return known
    raise ValueError(f"{path}: base_model: {'; '.join(problems)}.")


def _finite(path: Path, tensors: Tensors) -> Tensors:
    """The tensors as float32, if all of them are finite."""
    tensors = {name: tensor.astype(mx.float32) for name, tensor in tensors.items()}
    if bad := _not_finite(tensors):
        lines = "\n  ".join(first_few(bad))
        raise ValueError(f"{path} holds NaN or infinite values in:\n  {lines}")
    return tensors


def _not_finite(tensors: Tensors) -> list[str]:
    mx.eval(tensors)
    return [name for name, x in tensors.items() if not mx.isfinite(x).all().item()]


def _refuse_to_write(path: Path, tensors: Tensors) -> None:
    """Raise rather than put what the reader refuses in place of a good adapter."""
    if bad := _not_finite(tensors):
        half = any(x.dtype == mx.float16 for x in tensors.values())
        raise ValueError(
            f"{path}: nothing was written: the adapter holds NaN or infinite values"
            f"{' (float16 ends at 65,504)' if half else ''} in {', '.join(first_few(bad))}."
        )


def refuse_to_replace(folder: Path, form: str, *, overwrite: bool = False) -> None:
    """Raise unless an adapter in this form may be written to ``folder``.

    It may replace a δ-mem adapter of the same form, and with ``overwrite`` any adapter, but never
    come to lie beside another.

    Raises:
        FileExistsError: If there is an adapter that it may not replace.
        ValueError: If the form is unknown.
    """
    files = _form(form).files
    there = files_there(folder)
    foreign = set(there) & set(MLX_LM.files) and not _is_ours(folder)
    if foreign and not (overwrite and files == MLX_LM.files):
        raise FileExistsError(
            f"{folder} holds an adapter that is no δ-mem adapter ({', '.join(there)}): nothing was "
            "written. Give another folder."
        )
    others = [name for name in there if name not in files]
    if others and not overwrite:
        raise FileExistsError(
            f"{folder} holds an adapter in another form ({', '.join(others)}): nothing was "
            "written. Give another folder, or remove those files."
        )


def _is_ours(folder: Path) -> bool:
    """Whether mlx-lm's form in ``folder`` says of itself that it is a δ-mem adapter."""
    try:
        return fine_tune_type(folder) == FINE_TUNE_TYPE
    except (FileNotFoundError, ValueError):
        return False


def _form(name: str) -> AdapterForm:
    if name not in WRITTEN:
        raise ValueError(f"form is {shortened(name)}, expected one of {', '.join(WRITTEN)}.")
    return WRITTEN[name]


def write_adapter(adapter: AdapterFiles, folder: str | Path, form: str = "mlx-lm") -> None:
    """Write an adapter to ``folder``, in place of the δ-mem adapter that is there.

    Whenever it is stopped, the folder holds the one or the other whole.

    Raises:
        ValueError: If ``form`` is unknown, or a tensor holds NaN or infinite values.
        OSError: If a file cannot be written.
    """
    folder, files = expanded(folder), _form(form)
    _refuse_to_write(folder, adapter.tensors)
    values = _values(adapter, files)
    config = folder / files.config
    before = hashlib.sha256(config.read_bytes()).hexdigest() if config.is_file() else ""
    seal = sealed(adapter.tensors, _in_seal(values, adapter.base_name), before)
    _write_weights(folder / files.weights, adapter.tensors, seal)
    if files is MLX_LM:
        values |= {WEIGHTS_KEY: seal.sha256}
    write_text(config, json.dumps(values, indent=2) + "\n")
    ours = _is_ours(folder)
    for name in reversed(files_there(folder)):  # weights first: settings alone are no adapter
        if name not in files.files and (ours or name not in MLX_LM.files):
            (folder / name).unlink()


def write_copy(adapter: AdapterFiles, weights: Path) -> None:
    """Write a numbered copy of an adapter's weights, to be used with its settings at any time."""
    _refuse_to_write(weights, adapter.tensors)
    settings = _in_seal(_values(adapter, MLX_LM), adapter.base_name)
    seal = sealed(adapter.tensors, settings, NUMBERED)
    _write_weights(weights, adapter.tensors, seal)


def _write_weights(path: Path, tensors: Tensors, seal: Seal) -> None:
    write = write_npz if path.suffix.lower() == ".npz" else write_safetensors
    write_atomically(path, partial(write, tensors=tensors, seal=seal))


def _in_seal(values: Mapping[str, object], base: str | None) -> str:
    """What a seal says of the settings: weights go to others as they are."""
    known = values.get("base_model")
    if isinstance(known, dict):
        values = {**values, "base_model": known | {"name": public_name(base)}}
    return json.dumps(values)


def _values(adapter: AdapterFiles, form: AdapterForm) -> dict[str, object]:
    """What the file of settings holds."""
    if form is PUBLISHED:
        return adapter.config.to_dict()
    return {
        "fine_tune_type": FINE_TUNE_TYPE,
        "num_layers": len({name.split(".")[2] for name in adapter.tensors}),
        "base_model": adapter.base_model,
        "delta_mem": adapter.config.to_dict(),
        "deltamem_mlx_version": __version__,
    }
