"""The memory of one attention layer: its parameters, and its corrections to q, k, v and o."""

import inspect
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..config import HEADS, DeltaMemConfig
from ..ops import ScanSpec, short_for, step_for
from .cache import MemoryCache
from .corrected import Corrected
from .early import begin
from .fingerprint import AdapterMark, is_off
from .layer import Memory, Served, read_and_write
from .layer_cache import LayerCache
from .parameters import PARAMETERS, adapter_shapes, flat_arrays
from .projections import Projections, view_of
from .shares import Share, rows_here, whole_columns, with_gradients_of_all


@dataclass(frozen=True)
class Packed:
    """The adapter weights of a layer as its forward multiplies them.

    They have the rank of what they meet, or every product would first be reshaped.

    Args:
        sources (tuple[mx.array, ...]): The parameters these were made of.
        inward (mx.array): float32 [1, D, P], all memory and gate projections side by side.
        bias (mx.array): float32 [1, 1, P].
        outward (dict[str, mx.array]): [1, r·H, out] per corrected projection, scale included.
        served (Served): The forms that serve this device.
    """

    sources: tuple[mx.array, ...]
    inward: mx.array
    bias: mx.array
    outward: dict[str, mx.array]
    served: Served


class DeltaMemAttention(nn.Module):
    """Mixin over an mlx-lm attention: read the memory, correct q/k/v/o, write the memory.

    The base class's own forward runs on a view of the module whose projections are corrected,
    so nothing is stored on the module and conversations cannot meet (arXiv 2605.12357,
    section 3).
    """

    base_class: type[nn.Module]
    cache_index: int  # of ``cache`` among the positional arguments
    x_name: str

    def add_memory(
        self, layer: int, projections: Projections, config: DeltaMemConfig, mark: AdapterMark
    ) -> None:
        """Create the adapter's parameters; only those that act are trainable."""
        self._memory_layer = layer
        self._memory_mark = mark
        self._memory_projections = projections
        self._memory_config = config
        self._memory_packed: Packed | None = None
        self._memory_rows_only = False
        self._memory_spec = ScanSpec(
            rank=config.rank,
            heads=config.num_state_heads,
            normalize_qk=config.normalize_qk,
            state_update_mode=config.state_update_mode,
            rankwise_gates=config.rankwise_gates,
            uses_lambda=config.uses_lambda,
        )
        for name, shape in adapter_shapes(projections.whole, config).items():
            self[name] = self._initial(name, shape)
        # A module would take a tuple for parameters, so these go past its __setattr__.
        vars(self)["_memory_keys"] = tuple(self._acting_keys())
        self._memory_sources = operator.itemgetter(*self._memory_keys)
        self._memory_output = dict(projections.names)["o"]
        inactive = [key for key in PARAMETERS if key in self and key not in self._memory_keys]
        self.freeze(recurse=False, keys=inactive)

    def _initial(self, name: str, shape: list[int]) -> mx.array:
        config = self._memory_config
        if name.startswith("memory_"):
            bound = 1 / math.sqrt(shape[1])
            return mx.random.uniform(-bound, bound, shape)
        if name.startswith("delta_") and name.endswith("_proj"):
            return self._initial_correction(name.split("_")[1], *shape)
        ratio = config.delta_scale_init / config.delta_scale_max
        ratio = min(max(ratio, 1e-4), 1 - 1e-4)
        values = {
            "beta_bias": config.beta_bias_init,
            "lambda_bias": -config.beta_bias_init,
            "delta_scale_raw": math.log(ratio / (1 - ratio)),
            "delta_o_rmsnorm_weight": 1.0,
        }
        return mx.full(shape, values.get(name, 0.0))

    def _initial_correction(self, head: str, out: int, M: int) -> mx.array:
        config = self._memory_config
        if head not in config.delta_heads or config.output_init == "zero":
            return mx.zeros((out, M))
        if config.output_init == "random":
            bound = config.online_gain / math.sqrt(M)
            return mx.random.uniform(-bound, bound, (out, M))
        most = config.rank
        if config.output_init == "base_slice_fixed":
            most = min(most, config.base_slice_ref_width)
        projections = self._memory_projections
        base = projections.weight(self, head)
        projection = self[projections.attribute(head)]
        columns = whole_columns(base, projection, most, projections.share(head))
        width = columns.shape[1]
        norm = mx.maximum(mx.linalg.norm(columns, axis=0, keepdims=True), 1e-12)
        return mx.pad(config.online_gain * columns / norm, [(0, 0), (0, M - width)])

    @staticmethod
    def draw_as_for(projections: Projections, config: DeltaMemConfig) -> None:
        """Draw as many random numbers as ``add_memory`` would, for a layer that is elsewhere."""
        drawn = ["memory"] * 3
        if config.output_init == "random":
            drawn += [head for head in config.delta_heads if head in projections.heads]
        for _ in drawn:
            mx.random.uniform(shape=(1,))

    def adapter_keys(self) -> tuple[str, ...]:
        """Names of the adapter's parameters that act: those a file holds and training changes."""
        keys: tuple[str, ...] = self._memory_keys
        return keys

    def adapter_parameters(self) -> tuple[mx.array, ...]:
        """The parameters of those names."""
        found: tuple[mx.array, ...] = self._memory_sources(self)
        return found

    def hold(self, tensors: Mapping[str, mx.array], *, rows_only: bool) -> None:
        """Take the weights of a file, whatever they are there, as float32.

        Args:
            tensors (Mapping): The parameters that act, by their names here.
            rows_only (bool): Keep this process's rows of those that are dealt out, and no more.
        """
        self._memory_rows_only = rows_only
        shares = self.shared_rows()
        for key in self.adapter_keys():
            value = tensors[key].astype(mx.float32)
            if (share := shares.get(key)) is not None:
                value = mx.array(np.array(share.of(value)))  # a slice would hold on to all of it
            self[key] = value

    def shared_rows(self) -> dict[str, Share]:
        """The parameters of which some rows alone are here, and which."""
        shares = self._memory_projections.shares if self._memory_rows_only else ()
        found = {f"delta_{head}_proj": share for head, share in shares}
        return {key: share for key, share in found.items() if key in self.adapter_keys()}

    def _acting_keys(self) -> list[str]:
        config = self._memory_config
        return [key for key in PARAMETERS if key in self and not is_off(key, config)]

    @property
    def memory_layer(self) -> int:
        """Index of the layer in ``model.layers``."""
        return self._memory_layer

    @property
    def memory_config(self) -> DeltaMemConfig:
        """The adapter's settings."""
        return self._memory_config

    @property
    def memory_projections(self) -> Projections:
        """Where the attention keeps its projections."""
        return self._memory_projections

    @property
    def memory_spec(self) -> ScanSpec:
        """How projections become queries, keys, values and gates."""
        return self._memory_spec

    def remove_memory(self) -> None:
        """Drop all that ``add_memory`` created."""
        for key in PARAMETERS:
            self.pop(key, None)
        for name in [name for name in vars(self) if name.startswith("_memory_")]:
            delattr(self, name)
        self._no_grad -= set(PARAMETERS)

    def __call__(self, *args: Any, **kwargs: Any) -> object:  # as the base class has them
        memory, args, kwargs = self._take_cache(args, kwargs)
        x: mx.array = args[0] if args else kwargs[self.x_name]
        packed, B = self._packed(x.dtype), x.shape[0]
        # One product for the batch: one for each conversation is several times slower.
        rows = x if B == 1 else x.reshape(1, -1, x.shape[-1])
        projected = mx.addmm(packed.bias, rows.astype(mx.float32), packed.inward)
        reads = read_and_write(projected, B, memory, packed.served)
        if x.shape[1] > 1 and isinstance(memory, MemoryCache):
            begin(reads)
        cast = reads.astype(x.dtype)
        view, norm, training = view_of(self), self._o_norm(), self.training
        attributes = vars(view)
        for name, weight in packed.outward.items():
            normed = norm if name == self._memory_output else None
            values = reads if normed else cast
            if training:
                values = with_gradients_of_all(values, self[name])
            attributes[name] = Corrected(self[name], values, weight, normed)
        return self.base_class.__call__(view, *args, **kwargs)

    def _take_cache(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Memory | None, tuple[Any, ...], dict[str, Any]]:
        """The layer's memory, and the arguments with the KV cache that the base class expects."""
        by_name = "cache" in kwargs
        i = self.cache_index
        cache = kwargs["cache"] if by_name else args[i] if len(args) > i else None
        if cache is None or cache == (None, None):  # some models pass a pair of nothings
            return None, args, kwargs
        if not isinstance(cache, LayerCache):
            raise TypeError(
                f"Layer {self._memory_layer} keeps a memory, but its cache is a "
                f"{type(cache).__name__}. Make the prompt cache with make_prompt_cache(model) "
                "after the adapter is loaded."
            )
        memory = cache.memory_of(self._memory_layer)
        if isinstance(memory, MemoryCache) and memory.mark is not self._memory_mark:
            memory.belong_to(self._memory_mark)
        if by_name:
            return memory, args, {**kwargs, "cache": cache.kv}
        return memory, (*args[:i], cache.kv, *args[i + 1 :]), kwargs

    def _o_norm(self) -> tuple[mx.array, float] | None:
        if "delta_o_rmsnorm_weight" not in self:
            return None
        return self.delta_o_rmsnorm_weight, self._memory_config.delta_o_rmsnorm_eps

    def new_memory(self) -> MemoryCache:
        """An empty memory for this layer."""
        return MemoryCache.of_adapter(self._memory_layer, self._memory_mark)

    def pack(self) -> None:
        """Evaluate and pack the weights now, so that several threads may call the layer."""
        mx.eval([self[name] for name in PARAMETERS if name in self])
        dtypes = [
            value.dtype
            for name, value in flat_arrays(self)
            if name.endswith(("weight", "scales")) and mx.issubdtype(value.dtype, mx.floating)
        ]
        packed = self._packed(dtypes[0] if dtypes else mx.bfloat16)
        mx.eval(packed.inward, packed.bias, packed.outward)

    def _packed(self, dtype: mx.Dtype) -> Packed:
        """The packed weights, made anew when a parameter was replaced or while training."""
        sources = self.adapter_parameters()
        packed = self._memory_packed
        if packed is not None and all(map(operator.is_, sources, packed.sources)):
            return packed
        packed = self._pack(sources, dtype)
        if not self.training:  # in training the weights change with every step
            self._memory_packed = packed
        return packed

    def _pack(self, sources: tuple[mx.array, ...], dtype: mx.Dtype) -> Packed:
        config = self._memory_config
        rows = [self.memory_q_proj, self.memory_k_proj, self.memory_v_proj, self.beta_proj]
        biases = [mx.zeros((3 * config.read_width,)), self.beta_bias]
        if config.uses_lambda:
            rows.append(self.lambda_proj)
            biases.append(self.lambda_bias)
        spec = self._memory_spec
        inward = mx.contiguous(spec.pack(mx.concatenate(rows).astype(mx.float32)).T[None])
        bias = spec.pack(mx.concatenate(biases).astype(mx.float32))[None, None]
        wanted = mx.float32 if self._o_norm() else dtype  # a norm is taken of exact ones
        served = Served(spec, step_for(spec, wanted), short_for(spec, wanted))
        return Packed(sources, inward, bias, self._outward(dtype), served)

    def _outward(self, dtype: mx.Dtype) -> dict[str, mx.array]:
        config, projections = self._memory_config, self._memory_projections
        weights = {}
        for head in config.delta_heads:
            weight = self._scale(head) * self[f"delta_{head}_proj"].astype(mx.float32)
            base = self[projections.attribute(head)]
            share = None if self._memory_rows_only else projections.share(head)
            weights[head] = rows_here(weight, base, share).T
        if projections.packed and weights.keys() & set("qkv"):
            zeros = {h: mx.zeros((config.read_width, projections.width(h))) for h in "qkv"}
            weights["packed"] = projections.join({h: weights.pop(h, zeros[h]) for h in "qkv"})
        normed = "o" if self._o_norm() else ""  # a normed correction stays float32
        return {
            projections.attribute(head): mx.contiguous(
                w[None] if head == normed else w[None].astype(dtype)
            )
            for head, w in weights.items()
        }

    def _scale(self, head: str) -> mx.array | float:
        config = self._memory_config
        if not config.trainable_delta_scale:
            return config.scale
        index = HEADS.index(head) if config.delta_scale_granularity == "head" else 0
        trained = mx.sigmoid(self.delta_scale_raw[index]) * config.delta_scale_max
        return config.scale * trained


@lru_cache
def memory_class(base: type[nn.Module]) -> type[DeltaMemAttention]:
    """Subclass of ``base``, an mlx-lm attention class, that keeps a memory."""
    names = list(inspect.signature(base.__call__).parameters)[1:]
    attributes = {"base_class": base, "cache_index": names.index("cache"), "x_name": names[0]}
    return type(f"DeltaMem{base.__name__}", (DeltaMemAttention, base), attributes)
