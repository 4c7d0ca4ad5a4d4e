"""Where an mlx-lm attention keeps its q, k, v and output projections."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from ..ops.seams import split
from .shares import Share

QUERY = ("q_b_proj", "wq_b", "q_proj", "c_q", "attn_query")
KEY_VALUE = (("k_proj", "v_proj"), ("c_k", "c_v"), ("attn_key", "attn_value"))
PACKED = ("qkv_proj", "W_pack", "query_key_value", "Wqkv", "c_attn", "wqkv", "q_k_v_proj")
OUTPUT = ("o_proj", "out_proj", "dense", "c_proj", "wo", "attn_resid", "o_b_proj", "wo_b")


@dataclass(frozen=True)
class Projections:
    """The projections of one attention.

    Args:
        names (tuple[tuple[str, str], ...]): (head, attribute) pairs for the separate ones.
        packed (str): Attribute of the packed q/k/v projection, if there is one.
        groups (int): Groups of rows in the packed projection, each its q, its k, its v rows.
        widths (tuple[tuple[str, int], ...]): (head, output width) pairs, for the heads among
          q, k, v and o that can be corrected.
        dims (int): Width D of the hidden states that the attention is given.
        gated (int): Where the q projection makes an output gate as well: the heads for each of
          which it has first the query's rows, then as many of the gate. 0: it does not.
        shares (tuple[tuple[str, Share], ...]): (head, share) pairs for those of whose rows other
          processes have the rest: widths, groups and gates count what is here.
    """

    names: tuple[tuple[str, str], ...]
    packed: str | None
    groups: int
    widths: tuple[tuple[str, int], ...]
    dims: int
    gated: int = 0
    shares: tuple[tuple[str, Share], ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that can be corrected."""
        return tuple(head for head, _ in self.widths)

    def width(self, head: str) -> int:
        """Output width of a head's projection."""
        return dict(self.widths)[head]

    def attribute(self, head: str) -> str:
        """Where the attention keeps a head's projection, alone or packed with others."""
        return dict(self.names).get(head) or self.packed or ""

    def restricted(self, heads: set[str]) -> "Projections":
        """The same with no other heads than these."""
        return replace(self, widths=tuple(pair for pair in self.widths if pair[0] in heads))

    @property
    def whole(self) -> "Projections":
        """The same with the rows of all processes."""
        parts = {head: share.parts for head, share in self.shares}
        widths = tuple((head, width * parts.get(head, 1)) for head, width in self.widths)
        gated = self.gated * parts.get("q", 1)
        groups = self.groups
        if self.packed and groups > 1:  # of each head, or of each KV head
            groups *= parts.get("q", 1)
        return replace(self, widths=widths, gated=gated, groups=groups, shares=())

    def share(self, head: str) -> Share | None:
        """Which of a head's rows are here; None: all of them."""
        return dict(self.shares).get(head)

    def weight(self, attention: nn.Module, head: str) -> mx.array:
        """The base weight [out, in] of a head, dequantized if need be."""
        weight = dense_weight(attention[self.attribute(head)])
        return weight if head in dict(self.names) else self.split(weight.T)[head].T

    def split(self, packed: mx.array) -> dict[str, mx.array]:
        """Columns of q, k and v out of a packed output [..., q + k + v]."""
        sizes = [self.width(head) // self.groups for head in "qkv"]
        grouped = packed.reshape(*packed.shape[:-1], self.groups, -1)
        cuts = [sizes[0], sizes[0] + sizes[1]]
        parts = split(grouped, cuts, axis=-1)
        return {head: part.flatten(-2) for head, part in zip("qkv", parts, strict=True)}

    def join(self, parts: Mapping[str, mx.array]) -> mx.array:
        """The reverse of ``split``."""
        grouped = [parts[head].reshape(*parts[head].shape[:-1], self.groups, -1) for head in "qkv"]
        return mx.concatenate(grouped, axis=-1).flatten(-2)

    def with_gate(self, rows: mx.array) -> mx.array:
        """The queries' rows [out / 2, ...] with zeros in the place of the gate's, [out, ...]."""
        queries = rows.reshape(self.gated, 1, -1, *rows.shape[1:])
        return mx.concatenate([queries, mx.zeros_like(queries)], axis=1).flatten(0, 2)


def dense_weight(linear: nn.Module) -> mx.array:
    """The weight [out, in] of a linear layer, dequantized, and with a LoRA or DoRA in it."""
    if "lora_a" in linear:
        return dense_weight(linear.fuse(dequantize=True))
    if "scales" not in linear:
        return cast(mx.array, linear.weight)
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
    """What the names in ``attention`` tell of its projections; ``None``: it has no q and output.

    Keys and values that are not each a projection of the layer's input (latent attention, one
    projection for both, another layer's) cannot be corrected: then there are q and o.
    """
    output = next((name for name in OUTPUT if name in attention), None)
    query = next((name for name in QUERY if name in attention), None)
    packed = next((name for name in PACKED if name in attention), None)
    if output is None or (query is None and packed is None):
        return None
    out, inner = linear_dims(attention[output])
    if query is None and packed is not None:
        rows, dims = linear_dims(attention[packed])
        widths = {"q": inner, "k": (rows - inner) // 2, "v": (rows - inner) // 2, "o": out}
        return Projections((("o", output),), packed, 1, tuple(widths.items()), dims)
    pairs = [pair for pair in KEY_VALUE if all(name in attention for name in pair)]
    own = dict(zip("kv", pairs[0], strict=True)) if pairs else {}
    heads = {"q": query, **own, "o": output}
    names = tuple((head, name) for head, name in heads.items() if name is not None)
    separate = tuple((head, linear_dims(attention[name])[0]) for head, name in names)
    return Projections(names, None, 1, separate, out)


def candidates(layer: nn.Module) -> Iterator[tuple[str, nn.Module, Projections]]:
    """The attentions inside ``layer`` that could be corrected, with their paths in it."""
    for path, module in sorted(layer.named_modules(), key=lambda named: _natural(named[0])):
        if path and (projections := find_projections(module)) is not None:
            yield path, module, projections


def _natural(path: str) -> list[tuple[bool, int, str]]:
    """Sorts ``attn.2`` before ``attn.10``."""
    return [(p.isdigit(), int(p) if p.isdigit() else 0, p) for p in path.split(".")]


def view_of(module: nn.Module) -> nn.Module:
    """A shallow copy of ``module``: the same parameters, attributes of its own.

    Modules found in ``vars`` spare the forward a Python call for each that it looks up, and one
    that is replaced there is seen by this view only.
    """
    view = type(module).__new__(type(module))
    dict.update(view, module)
    attributes = vars(view)
    attributes.update(vars(module))
    attributes.update(module)
    return view
