"""Tiny models spread over several processes, beside the same ones that are whole.

An architecture's name may go on with ``:8`` or ``:4``, the bits it is quantized to, and with
``+onekv``, for one KV head, or ``+lower`` or ``+upper``, for an adapter of some of the layers.
"""

import importlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from architectures import ARCHITECTURES, config_of
from mlx.nn.layers.distributed import shard_linear
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models.cache import make_prompt_cache

import deltamem_mlx as dm
from deltamem_mlx.adapters.loading import fingerprint
from deltamem_mlx.memory.file import read_memory
from deltamem_mlx.model.patch import hold_whole, memory_layers

# So that two and three processes can share them, quantized or not.
SIZES = {
    "hidden_size": 192,
    "intermediate_size": 192,
    "moe_intermediate_size": 192,
    "shared_expert_intermediate_size": 192,
    "dense_intermediate_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "full_attention_interval": 2,
    "num_hidden_layers": 4,
    "index_n_heads": 6,
    "linear_num_value_heads": 6,
    "linear_num_key_heads": 6,
    "linear_value_head_dim": 32,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "mlp_layer_types": ["dense", "sparse"] * 2,
    "sparse_attention_freq": [0, 1] * 2,
}
PARTS = {"lower": (1,), "upper": (2, 3)}  # in a pipeline of two, the first process has the upper
SENDING = ("all_sum", "all_gather", "send")
TOKENS = mx.array([[5, 9, 3, 7, 1, 2, 8, 4, 6, 10, 11, 12]])


def built(name: str) -> nn.Module:
    """A tiny random model, the same in every process."""
    name, _, special = name.partition("+")
    name, _, bits = name.partition(":")
    config = config_of(name)
    text = config.get("text_config", config)
    text.update({key: value for key, value in SIZES.items() if key in text})
    if special == "onekv":
        text["num_key_value_heads"] = 1
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))

    def shake(p: mx.array) -> mx.array:
        if not mx.issubdtype(p.dtype, mx.floating):
            return p
        return p.astype(mx.float32) + 0.02 * mx.random.normal(p.shape)

    model.update(tree_map(shake, model.parameters()))
    if bits:
        nn.quantize(model, group_size=32, bits=int(bits))
    model.eval()
    mx.eval(model.parameters())
    return model


def config_for(name: str, output_init: str = "zero") -> dm.DeltaMemConfig:
    name, _, special = name.partition("+")
    heads = ARCHITECTURES[name.partition(":")[0]].heads
    return dm.DeltaMemConfig(
        rank=4,
        delta_heads=tuple(heads),
        output_init=output_init,
        target_layers=PARTS.get(special, ()),
    )


def adapted(model: nn.Module, folder: Path, config: dm.DeltaMemConfig) -> nn.Module:
    """The model with an adapter that acts, which is written to ``folder`` as well."""
    dm.attach(model, config, seed=1)
    mx.random.seed(7)
    for attention in memory_layers(model).values():
        for key in attention.adapter_keys():
            attention[key] = mx.random.normal(attention[key].shape) * 0.1
    dm.save_adapter(model, folder)
    return model


def spread(model: nn.Module, kind: str, group: mx.distributed.Group) -> nn.Module:
    """As mlx-lm's ``sharded_load`` does it."""
    if kind == "pipeline":
        model.model.pipeline(group)
    elif hasattr(model, "shard"):
        model.shard(group)
    else:
        shard_packed(model, group)
    mx.eval(model.parameters())
    return model


def shard_packed(model: nn.Module, group: mx.distributed.Group) -> None:
    """What mlx-lm does nowhere: attentions whose projection is packed, dealt out by heads."""
    for layer in model.layers:
        attention = layer.self_attn
        q = attention.n_heads * SIZES["head_dim"]
        cuts = [q, q + attention.n_kv_heads * SIZES["head_dim"]]
        attention.qkv_proj = shard_linear(
            attention.qkv_proj, "all-to-sharded", segments=cuts, group=group
        )
        attention.o_proj = shard_linear(attention.o_proj, "sharded-to-all", group=group)
        attention.n_heads //= group.size()
        attention.n_kv_heads //= group.size()


def fresh(name: str, kind: str, folder: Path, group: mx.distributed.Group) -> dict:
    """Whether a fresh adapter is the same however the model is spread."""
    same = []
    for init in ("base_slice_fixed", "random"):
        prints = {
            fingerprint(dm.attach(model, config_for(name, init), seed=3))
            for model in (built(name), spread(built(name), kind, group))
        }
        same.append(len(prints) == 1)
    return {"same": all(same)}


def fed(model: nn.Module, cache: list, tokens: mx.array) -> mx.array:
    """The logits, computed: messages of calls that are computed together may change places."""
    logits = model(tokens, cache=cache)
    mx.eval(logits, [entry.state for entry in cache])
    return logits


def held(model: nn.Module) -> dict[str, int]:
    """Bytes of each of the adapter's parameters that lie here, over the layers."""
    found: dict[str, int] = {}
    for attention in memory_layers(model).values():
        for key in attention.adapter_keys():
            found[key] = found.get(key, 0) + attention[key].nbytes
    return found


def said(model: nn.Module, cache: list) -> list[int]:
    """What comes after a prompt that is fed in pieces, as mlx-lm's generation has it."""
    steps = generate_step(TOKENS[0], model, prompt_cache=cache, max_tokens=12, prefill_step_size=4)
    return [int(token) for token, _ in steps]


class Sent:
    """Counts what is handed to mlx's engine to be sent, within its context.

    Attributes:
        messages, bytes (int): Of this process.
    """

    def __init__(self) -> None:
        self.messages = self.bytes = 0

    def __enter__(self) -> "Sent":
        self._real = {name: getattr(mx.distributed, name) for name in SENDING}
        for name, real in self._real.items():
            setattr(mx.distributed, name, partial(self._counted, real))
        return self

    def __exit__(self, *_: object) -> None:
        for name, real in self._real.items():
            setattr(mx.distributed, name, real)

    def _counted(self, real: Callable, x: mx.array, *rest: object, **more: object) -> mx.array:
        self.messages, self.bytes = self.messages + 1, self.bytes + x.nbytes
        return real(x, *rest, **more)


def sent_for_a_token(model: nn.Module) -> list[int]:
    """Messages and bytes that this process sends for a decoded token."""
    cache = make_prompt_cache(model)
    for fed in (TOKENS, TOKENS[:, :1]):  # what is compiled is traced once
        mx.eval(model(fed, cache=cache))
    with Sent() as sent:
        mx.eval(model(TOKENS[:, :1], cache=cache))
    return [sent.messages, sent.bytes]


def apart(a: dict[int, mx.array], b: dict[int, mx.array]) -> float:
    assert a.keys() == b.keys(), (list(a), list(b))
    return max(float(mx.abs(a[i] - b[i]).max()) for i in a)


def compared(name: str, kind: str, folder: Path, group: mx.distributed.Group) -> dict:
    """How far a model in several processes is from the same one in this process alone."""
    alone = folder / f"{name}-{group.rank()}"
    whole = adapted(built(name), alone / "adapter", config_for(name))
    plain = spread(built(name), kind, group)
    sent = [sent_for_a_token(plain)]
    part = dm.load_adapter(plain, alone / "adapter")
    sent.append(sent_for_a_token(part))
    caches = make_prompt_cache(whole), make_prompt_cache(part)
    both = list(zip((whole, part), caches, strict=True))
    logits = [fed(model, cache, TOKENS) for model, cache in both]
    again = [fed(model, cache, TOKENS[:, :1]) for model, cache in both]
    states = [dm.memory_state(cache) for cache in caches]
    dm.save_memory(alone / "alone.safetensors", caches[0], whole)
    dm.save_memory(folder / f"{name}.safetensors", caches[1], part)
    one = read_memory(alone / "alone.safetensors")
    several = read_memory(folder / f"{name}.safetensors")
    loaded = dm.load_memory(alone / "alone.safetensors", part)
    dm.save_memory(folder / f"{name}-again.safetensors", loaded, part)
    back = read_memory(folder / f"{name}-again.safetensors")
    dm.save_adapter(part, folder / f"{name}-adapter")
    texts = [said(model, make_prompt_cache(model)) for model in (whole, part)]
    parts = [held(model) for model in (whole, part)]
    hold_whole(part)  # as training does
    return {
        "logits": float(mx.abs(logits[0] - logits[1]).max()),
        "decoded": float(mx.abs(again[0] - again[1]).max()),
        "spread": float(mx.abs(logits[0]).max()),
        "states": apart(*states),
        "same_fingerprint": fingerprint(whole) == fingerprint(part),
        "same_file": one.adapter == several.adapter
        and one.tokens_written == several.tokens_written
        and one.base_model == several.base_model
        and all(np.array_equal(one.states[i], several.states[i]) for i in one.states),
        "same_when_loaded": all(np.array_equal(one.states[i], back.states[i]) for i in one.states),
        "said": texts,
        "held": parts,
        "held_whole": held(part) == held(whole),
        "sent": sent,
    }
