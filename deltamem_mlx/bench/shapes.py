"""Models with random weights in the shape of a known one, to be timed without its files."""

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ..model.parameters import flat_arrays

_QWEN3 = {"model_type": "qwen3", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "head_dim": 128}
_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}

_SIZES = (
    *("hidden_size", "num_hidden_layers", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)


def _shape(base: dict[str, Any], sizes: tuple[int, ...], **more: object) -> dict[str, Any]:
    return base | dict(zip(_SIZES, sizes, strict=True)) | {"max_position_embeddings": 40960} | more


# By name, what the model's config.json says of its shape.
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _shape(_QWEN3, (1024, 28, 3072, 16, 8, 151936), tie_word_embeddings=True),
    "qwen3-1.7b": _shape(_QWEN3, (2048, 28, 6144, 16, 8, 151936), tie_word_embeddings=True),
    "qwen3-4b": _shape(_QWEN3, (2560, 36, 9728, 32, 8, 151936), tie_word_embeddings=True),
    "qwen3-8b": _shape(_QWEN3, (4096, 36, 12288, 32, 8, 151936), tie_word_embeddings=False),
    "llama-3.2-1b": _shape(_LLAMA, (2048, 16, 8192, 32, 8, 128256), rope_theta=5e5, head_dim=64),
    "llama-3.2-3b": _shape(_LLAMA, (3072, 28, 8192, 24, 8, 128256), rope_theta=5e5, head_dim=128),
    "smollm2-135m": _shape(_LLAMA, (576, 30, 1536, 9, 3, 49152), rope_theta=1e5),
    "smollm2-1.7b": _shape(_LLAMA, (2048, 24, 8192, 32, 32, 49152), rope_theta=1.3e5),
    "tiny": _shape(_LLAMA, (64, 4, 128, 4, 2, 512), rope_theta=1e4),
}


def shape_config(name: str, layers: int | None = None) -> dict[str, Any]:
    """The config of a shape, cut to ``layers`` of its layers.

    The vocabulary is cut in the same proportion: with a few layers under all of its head, the
    head would be what is timed, and whatever a layer costs would vanish beside it.

    Args:
        name (str): A key of ``SHAPES``.
        layers (int): Layers to keep. Default: all.

    Raises:
        ValueError: If the shape is unknown, or has fewer layers.
    """
    if name not in SHAPES:
        raise ValueError(f"No shape {name!r}. Expected one of {', '.join(SHAPES)}.")
    config = dict(SHAPES[name])
    total = int(config["num_hidden_layers"])
    layers = total if layers is None else layers
    if not 1 <= layers <= total:
        raise ValueError(f"{name} has {total} layers, asked for {layers}. Expected 1 to {total}.")
    vocabulary = -(-int(config["vocab_size"]) * layers // total)
    return config | {"num_hidden_layers": layers, "vocab_size": max(64, -(-vocabulary // 64) * 64)}


def random_model(
    config: dict[str, Any],
    *,
    bits: int | None = None,
    dtype: mx.Dtype = mx.float32,
    seed: int = 0,
) -> nn.Module:
    """A model with random weights.

    Args:
        config (dict[str, Any]): As ``shape_config`` gives it.
        bits (int): Quantize to this many, in groups of 64. Default: no quantization.
        dtype (mx.Dtype): Of all weights that stay dense.
        seed (int): Of the weights.
    """
    module = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    mx.random.seed(seed)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(dtype)
    if bits is not None:
        nn.quantize(model, group_size=64, bits=bits)
    model.eval()
    # One array after another, so that no more than one is there in float32, too.
    for _, weight in flat_arrays(model.parameters()):
        mx.eval(weight)
    return model
