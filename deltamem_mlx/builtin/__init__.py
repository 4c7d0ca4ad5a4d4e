"""The built-in demo pair: a small model and its δ-mem adapter, packed with the code."""

from pathlib import Path

_HERE = Path(__file__).parent


def base_folder() -> Path:
    """The folder of the built-in model, in mlx-lm's form.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    return _folder("base", "config.json")


def adapter_folder() -> Path:
    """The folder of the built-in model's δ-mem adapter.

    Raises:
        FileNotFoundError: If this copy of the package was made without it.
    """
    return _folder("adapter", "adapter_config.json")


def _folder(name: str, file: str) -> Path:
    folder = _HERE / name
    if not (folder / file).is_file():
        raise FileNotFoundError(
            "The built-in demo pair is not in this copy of deltamem-mlx. Name a model and an "
            "adapter: --model FOLDER|REPO --adapter FOLDER|REPO"
        )
    return folder
