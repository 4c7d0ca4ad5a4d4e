"""Where an mlx-lm attention keeps its q, k, v and output projections."""

from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

SEPARATE = (
    ("q_proj", "k_proj", "v_proj"),
    ("c_q", "c_k", "c_v"),
    ("attn_query", "attn_key", "attn_value"),
)
PACKED = ("qkv_proj", "W_pack", "query_key_value", "Wqkv", "c_attn", "wqkv", "q_k_v_proj")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_resid")

# Rows of a packed projection are, for each group: its q rows, its k rows, its v rows. The number
# of groups by model file: one, or the attention's attribute that counts them. A packed
# projection of another file is refused, as nothing in it tells the order.
PACKED_GROUPS: dict[str, str | None] = {
    "phi3": None,
    "phixtral": None,
    "gpt2": None,
    "gpt_bigcode": None,
    "qwen": None,
    "baichuan_m1": None,
    "bailing_moe": None,
    "bailing_moe_linear": None,
    "dbrx": None,
    "openelm": None,
    "plamo2": None,
    "plamo3": None,
    "lille-130m": None,
    "spark2_5": None,
    "gpt_neox": "num_attention_heads",
    "internlm2": "n_kv_heads",
    "phi3small": "n_kv_heads",
}


@dataclass(frozen=True)
class Projections:
    """The projections of one attention.

    Args:
        names (tuple[tuple[str, str], ...]): (head, attribute) pairs for the separate ones.
        packed (str): Attribute of the packed q/k/v projection, if there is one.
        groups (int): Groups of rows in the packed projection.
        widths (tuple[tuple[str, int], ...]): (head, output width) pairs for q, k, v and o.
        dims (int): Input width D of the q/k/v projections.
    """

    names: tuple[tuple[str, str], ...]
    packed: str | None
    groups: int
    widths: tuple[tuple[str, int], ...]
    dims: int

    def width(self, head: str) -> int:
        return dict(self.widths)[head]

    def weight(self, attention: nn.Module, head: str) -> mx.array:
        """The base weight [out, in] of a head, dequantized if need be."""
        attribute = dict(self.names).get(head)
        if attribute is not None:
            return dense_weight(attention[attribute])
        return self.split(dense_weight(attention[self.packed]).T)[head].T

    def split(self, packed: mx.array) -> dict[str, mx.array]:
        """Columns of q, k and v out of a packed output [..., q + k + v]."""
        sizes = [self.width(head) // self.groups for head in "qkv"]
        grouped = packed.reshape(*packed.shape[:-1], self.groups, -1)
        cuts = [sizes[0], sizes[0] + sizes[1]]
        parts = mx.split(grouped, cuts, axis=-1)
        return {head: part.flatten(-2) for head, part in zip("qkv", parts, strict=True)}

    def join(self, parts: dict[str, mx.array]) -> mx.array:
        """The reverse of ``split``."""
        grouped = [parts[head].reshape(*parts[head].shape[:-1], self.groups, -1) for head in "qkv"]
        return mx.concatenate(grouped, axis=-1).flatten(-2)


def dense_weight(linear: nn.Module) -> mx.array:
    """The weight [out, in] of a linear layer, dequantized if it is quantized."""
    if "scales" not in linear:
        return linear.weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=getattr(linear, "mode", "affine"),
    )


def linear_dims(linear: nn.Module) -> tuple[int, int]:
    """Output and input width of a linear layer, quantized or not, with LoRA or not."""
    linear = linear.linear if "linear" in linear else linear
    if "in_features" in vars(linear):
        return linear.out_features, linear.in_features
    outputs, inputs = linear.weight.shape
    return outputs, inputs * 32 // linear.bits if "scales" in linear else inputs


def find_projections(attention: nn.Module) -> Projections | None:
    """The projections of ``attention``, or ``None`` if it has no separable q, k, v and output."""
    output = next((name for name in OUTPUT if name in attention), None)
    if output is None:
        return None
    for names in SEPARATE:
        if all(name in attention for name in names):
            heads = dict(zip("qkv", names, strict=True)) | {"o": output}
            widths = {head: linear_dims(attention[name])[0] for head, name in heads.items()}
            dims = linear_dims(attention[names[0]])[1]
            return Projections(tuple(heads.items()), None, 1, tuple(widths.items()), dims)
    packed = next((name for name in PACKED if name in attention), None)
    model_file = type(attention).__module__.rpartition(".")[2]
    if packed is None or model_file not in PACKED_GROUPS:
        return None
    counter = PACKED_GROUPS[model_file]
    rows, dims = linear_dims(attention[packed])
    out, q = linear_dims(attention[output])
    widths = {"q": q, "k": (rows - q) // 2, "v": (rows - q) // 2, "o": out}
    groups = 1 if counter is None else getattr(attention, counter)
    return Projections((("o", output),), packed, groups, tuple(widths.items()), dims)


def candidates(layer: nn.Module) -> Iterator[tuple[str, nn.Module, Projections]]:
    """The attentions inside ``layer`` that could be corrected, with their paths in it."""
    for path, module in layer.named_modules():
        if path and (projections := find_projections(module)) is not None:
            yield path, module, projections
