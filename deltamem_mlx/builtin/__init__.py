"""The built-in demo pair: a small model and its δ-mem adapter, packed with the code."""

from pathlib import Path

_HERE = Path(__file__).parent
# A checkout keeps the adapter with the others; a wheel packs it beside the base.
_ADAPTERS = _HERE.parent.parent / "adapters"


def base_folder() -> Path:
    """The folder of the built-in model, in mlx-lm's form.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    return _existing("config.json", _HERE / "base")


def adapter_folder() -> Path:
    """The folder of the built-in model's δ-mem adapter.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    return _existing("adapter_config.json", _HERE / "adapter", _ADAPTERS / "builtin")


def _existing(file: str, *folders: Path) -> Path:
    found = next((folder for folder in folders if (folder / file).is_file()), None)
    if found is None:
        raise FileNotFoundError(
            "The built-in demo pair is not in this copy of deltamem-mlx. Name a model and an "
            "adapter: --model FOLDER|REPO --adapter FOLDER|REPO"
        )
    return found
