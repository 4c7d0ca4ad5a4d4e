"""Tiny random mlx-lm models, in memory or as folders that `mlx_lm.load` reads.

They use the vocabulary of the `char96` tokenizer: ChatML, one character a token.
"""

import json
import shutil
from pathlib import Path

import mlx.core as mx
import mlx_lm
from architectures import build, config_of
from mlx import nn
from mlx.utils import tree_flatten
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import quantize_model, save_model

import deltamem_mlx as dm

FIXTURES = Path(__file__).parent.parent / "fixtures"
TOKENIZER = FIXTURES / "tokenizers" / "char96"


def tiny_config(arch: str = "qwen3", **overrides: object) -> dict[str, object]:
    """A config.json of a tiny model: hidden 32, 2 layers, 4 heads, vocabulary 96."""
    return {"eos_token_id": 2} | config_of(arch, **overrides)


def tiny_model(arch: str = "qwen3", *, seed: int = 0, **overrides: object) -> nn.Module:
    """A float32 model with seeded random weights, norms and biases included.

    - arch: a name in `architectures`.
    - overrides: keys of its config.json.
    """
    return build(arch, seed, **overrides)


def tiny_model_folder(
    folder: Path,
    arch: str = "qwen3",
    *,
    bits: int | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
    **overrides: object,
) -> Path:
    """Writes `tiny_model` with its config and tokenizer, and returns the folder.

    - bits: quantize to this many, in groups of 32.
    - dtype: of the weights that stay dense.
    """
    model = tiny_model(arch, seed=seed, **overrides)
    model.set_dtype(dtype)
    config = tiny_config(arch, **overrides)
    if bits is not None:
        model, config = quantize_model(model, config, group_size=32, bits=bits)
    folder.mkdir(parents=True, exist_ok=True)
    save_model(folder, model)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return with_tokenizer(folder)


def with_tokenizer(folder: Path) -> Path:
    """Puts the `char96` tokenizer beside a model, and returns the folder."""
    for file in TOKENIZER.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder


def strong_pair(
    folder: Path, granularity: str = "token", layers: tuple[int, ...] = ()
) -> tuple[nn.Module, TokenizerWrapper]:
    """The model in a folder, with an adapter strong enough to change what it says.

    - layers: that have a memory; all, if none is named.
    """
    model, tokenizer = mlx_lm.load(str(folder))
    config = dm.DeltaMemConfig(
        output_init="random",
        online_gain=4.0,
        beta_bias_init=0.0,
        memory_write_granularity=granularity,
        target_layers=layers,
    )
    return dm.attach(model, config, seed=1), tokenizer


def weights_of(model: nn.Module) -> dict[str, mx.array]:
    """Copies of all parameters by name, to compare a model with itself later."""
    return {name: mx.array(value) for name, value in tree_flatten(model.parameters())}
