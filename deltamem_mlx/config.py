"""The settings of a δ-mem adapter, as written in ``delta_mem_config.json``."""

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, cast

from .files import expanded, read_json
from .forms import config_in, settings_of
from .problems import first_few, shortened

HEADS = ("q", "k", "v", "o")
UPDATE_MODES = ("standard", "lambda_outside", "no_lambda")
GRANULARITIES = ("token", "message_mean", "sentence_mean")
OUTPUT_INITS = ("zero", "random", "base_slice", "base_slice_fixed")
SCALE_GRANULARITIES = ("layer", "head")
MOST = 4096  # far beyond any rank or number of heads, and few enough to make arrays of

# Such a key chooses how an adapter computes: one that is not known cannot be passed over.
_DECISIVE = re.compile(r".*_(backend|mode)")

# Switches of experiments that earlier releases removed, with the one value under which each is off.
REMOVED_SWITCHES: dict[str, object] = {
    "num_memory_partitions": 1,
    "num_global_memory_partitions": 0,
    "memory_partition_routing": "soft",
    "memory_partition_basis": "shared",
    "tie_memory_partition_read_write": False,
    "memory_partition_read_mode": "softmax",
    "memory_partition_sigmoid_gate_bias_init": -2.0,
    "slot_read_top_k": 0,
    "global_memory_mode": "shared_rw",
    "global_memory_read_top_k": 0,
    "global_memory_merge_mode": "gated_residual",
    "global_memory_gate_bias_init": -2.0,
    "global_memory_read_logit_bias": 0.0,
    "memory_reader_layers": [],
    "memory_reader_hidden_size": 1024,
    "memory_reader_residual_scale": 0.1,
    "memory_reader_read_only": True,
    "memory_readout_mode": "delta",
    "memory_write_source": "learned_hidden",
    "memory_write_proposals_per_message": 2,
    "synthetic_memory_slots": 1,
    "latent_memory_layers": [],
    "latent_memory_hidden_size": 1024,
    "latent_memory_residual_scale": 0.1,
    "latent_memory_slots": 4,
    "latent_memory_init_std": 0.002,
    "latent_gate_init": 0.01,
    "delta_scale_parameterization": "alpha_over_rank",
}


@dataclass(frozen=True)
class DeltaMemConfig:
    """Settings of a δ-mem adapter (arXiv 2605.12357, section 3).

    Args:
        rank (int): Side r of a state, which is an r×r matrix.
        alpha (float): The corrections are scaled by ``alpha / rank``.
        num_state_heads (int): States per layer; each reads and writes its own part of q, k, v.
        delta_heads (tuple[str, ...]): Which projections are corrected, among q, k, v, o.
        target_modules (tuple[str, ...]): Names under which a layer holds its attention.
        target_layers (tuple[int, ...]): Layers that get a memory. Empty: every layer.
        normalize_qk (bool): tanh and L2 norm on memory queries and keys.
        couple_lambda (bool): The keep gate is one minus the write gate.
        state_update_mode (str): ``standard``, ``lambda_outside`` or ``no_lambda``.
        rankwise_gates (bool): One gate per state row, otherwise one per state head.
        memory_write_granularity (str): ``token``, ``message_mean`` or ``sentence_mean``.
        beta_bias_init (float): First value of the write gate's bias.
        output_init (str): ``zero``, ``random``, ``base_slice`` or ``base_slice_fixed``.
        base_slice_ref_width (int): Columns that ``base_slice_fixed`` takes.
        online_gain (float): Size of the corrections' first weights.
        trainable_delta_scale (bool): Scale the corrections by a trained number.
        delta_scale_init (float): First value of that number.
        delta_scale_max (float): Its upper bound.
        delta_scale_granularity (str): One number per ``layer`` or per ``head``.
        delta_o_rmsnorm (bool): RMS norm on the correction of o.
        delta_o_rmsnorm_eps (float): Its epsilon.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If values are out of range; all of them are listed.
    """

    rank: int = 8
    alpha: float = 16.0
    num_state_heads: int = 1
    delta_heads: tuple[str, ...] = HEADS
    target_modules: tuple[str, ...] = ("self_attn",)
    target_layers: tuple[int, ...] = ()
    normalize_qk: bool = True
    couple_lambda: bool = True
    state_update_mode: str = "standard"
    rankwise_gates: bool = True
    memory_write_granularity: str = "token"
    beta_bias_init: float = -1.5
    output_init: str = "base_slice_fixed"
    base_slice_ref_width: int = 8
    online_gain: float = 0.05
    trainable_delta_scale: bool = False
    delta_scale_init: float = 1.0
    delta_scale_max: float = 2.0
    delta_scale_granularity: str = "layer"
    delta_o_rmsnorm: bool = False
    delta_o_rmsnorm_eps: float = 1e-6

    def __post_init__(self) -> None:
        self._check_types()
        set_ = object.__setattr__  # the dataclass is frozen
        set_(self, "delta_heads", tuple(h for h in HEADS if h in self.delta_heads) or ())
        set_(self, "target_layers", tuple(sorted(set(self.target_layers))))
        problems = list(self._problems())
        if problems:
            raise ValueError("Invalid δ-mem config:\n  " + "\n  ".join(problems))

    def _check_types(self) -> None:
        problems = []
        for field in fields(self):
            value, default = getattr(self, field.name), field.default
            shown = f"{field.name}: {shortened(value)} is not"
            if isinstance(default, tuple):
                item = int if field.name == "target_layers" else str
                if not isinstance(value, list | tuple):
                    problems.append(f"{shown} a list")
                elif not all(isinstance(v, item) and not isinstance(v, bool) for v in value):
                    problems.append(f"{shown} a list of {item.__name__}")
                else:
                    object.__setattr__(self, field.name, tuple(value))
            elif isinstance(default, float) and type(value) is int and abs(value) < 2**53:
                object.__setattr__(self, field.name, float(value))
            elif type(value) is not type(default):
                problems.append(f"{shown} of type {type(default).__name__}")
        unknown = [h for h in self.delta_heads if h not in HEADS] if not problems else []
        problems += [f"delta_heads: {shortened(h)} is none of q, k, v, o" for h in unknown]
        if problems:
            error = ValueError if unknown else TypeError
            raise error("Invalid δ-mem config:\n  " + "\n  ".join(first_few(problems, 10)))

    def _problems(self) -> list[str]:
        problems = [
            f"{name}: {getattr(self, name)!r} must be at least 1"
            for name in ("rank", "num_state_heads", "base_slice_ref_width")
            if getattr(self, name) < 1
        ]
        problems += [
            f"{name}: {shortened(getattr(self, name))} must be at most {MOST:,}"
            for name in ("rank", "num_state_heads")
            if getattr(self, name) > MOST
        ]
        problems += [
            f"{name}: {getattr(self, name)!r} must be positive and finite"
            for name in ("alpha", "delta_scale_init", "delta_scale_max", "delta_o_rmsnorm_eps")
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0)
        ]
        problems += [
            f"{name}: {getattr(self, name)!r} must be finite"
            for name in ("beta_bias_init", "online_gain")
            if not math.isfinite(getattr(self, name))
        ]
        choices = {
            "state_update_mode": UPDATE_MODES,
            "memory_write_granularity": GRANULARITIES,
            "output_init": OUTPUT_INITS,
            "delta_scale_granularity": SCALE_GRANULARITIES,
        }
        problems += [
            f"{name}: {shortened(getattr(self, name))} must be one of {', '.join(allowed)}"
            for name, allowed in choices.items()
            if getattr(self, name) not in allowed
        ]
        if not self.delta_heads:
            problems.append("delta_heads: empty, so the memory would correct nothing")
        if not self.target_modules:
            problems.append("target_modules: empty, so no attention could be found")
        if any(i < 0 for i in self.target_layers):
            shown = shortened(list(self.target_layers))
            problems.append(f"target_layers: {shown} has a negative index")
        return problems

    @property
    def scale(self) -> float:
        """``alpha / rank``, whatever the number of state heads."""
        return self.alpha / self.rank

    @property
    def read_width(self) -> int:
        """Width of one read, r·H."""
        return self.rank * self.num_state_heads

    @property
    def gate_width(self) -> int:
        """Gates per token: r·H with ``rankwise_gates``, otherwise H."""
        return self.read_width if self.rankwise_gates else self.num_state_heads

    @property
    def uses_lambda(self) -> bool:
        """Whether the keep gate has a projection of its own that acts."""
        return not self.couple_lambda and self.state_update_mode != "no_lambda"

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DeltaMemConfig":
        """Config from the keys of a ``delta_mem_config.json``, of any release.

        Removed switches are accepted at the value that turns them off. Unknown keys are warned
        of and ignored, missing ones take their defaults.

        Raises:
            ValueError: If a removed switch is on, a key that ends in ``_backend`` or ``_mode`` is
              unknown, or a value is out of range.
            TypeError: If a value has the wrong type.
        """
        known = {f.name for f in fields(cls)}
        active = [
            f"{key}: {shortened(value)}, only {REMOVED_SWITCHES[key]!r} is supported"
            for key, value in values.items()
            if key in REMOVED_SWITCHES and value != REMOVED_SWITCHES[key]
        ]
        if active:
            raise ValueError(
                "The adapter uses switches of removed experiments:\n  "
                + "\n  ".join(active)
                + "\nUse an adapter trained without them."
            )
        unknown = sorted(set(values) - known - set(REMOVED_SWITCHES))
        decisive = [key for key in unknown if _DECISIVE.fullmatch(key.lower())]
        if decisive:
            lines = first_few([f"{shortened(k)}: {shortened(values[k])}" for k in decisive], 10)
            raise ValueError(
                "The adapter computes in a way that this version does not know:\n  "
                + "\n  ".join(lines)
                + "\nUse a newer deltamem-mlx, or an adapter without."
            )
        if unknown:
            names = shortened(", ".join(unknown), 200)[1:-1]
            warnings.warn(f"Ignoring unknown keys of the δ-mem config: {names}", stacklevel=2)
        # What comes from a file has any type: the constructor checks each.
        return cls(**cast(dict[str, Any], {k: v for k, v in values.items() if k in known}))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "DeltaMemConfig":
        """Config of the adapter in ``folder``, in any of its forms.

        Raises:
            FileNotFoundError: If the folder holds no δ-mem config.
            ValueError: If the config is not valid JSON or not valid, or the folder holds two.
        """
        path = expanded(folder) / config_in(expanded(folder))
        return cls.from_dict(settings_of(path, read_json(path)))

    def to_dict(self) -> dict[str, object]:
        """The settings as JSON values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


_AT_INIT = ("output_init", "online_gain", "beta_bias_init")


def acting_settings(config: DeltaMemConfig) -> dict[str, object]:
    """The settings that change what a trained adapter computes, as JSON values."""
    idle = {*_AT_INIT, "base_slice_ref_width", "delta_scale_init"}
    if not config.trainable_delta_scale:
        idle |= {"delta_scale_max", "delta_scale_granularity"}
    if not config.delta_o_rmsnorm:
        idle.add("delta_o_rmsnorm_eps")
    if config.state_update_mode == "no_lambda":
        idle.add("couple_lambda")
    return {name: value for name, value in config.to_dict().items() if name not in idle}
