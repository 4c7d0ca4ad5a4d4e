"""A whole bench: what to measure, the measuring, and the report of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypedDict

import mlx.nn as nn

from ..model.patch import config_of, memory_layers
from .drafting import AHEAD, DraftRow, draft_rows
from .generation import Row, decode_rows, memory_facts, prefill_rows
from .machine import machine_facts
from .models import Pair
from .primitives import added_per_layer
from .profile import ProfileRow, profile_rows
from .scan import ScanRow, scan_rows
from .timing import Effort
from .training import TrainingRow, training_rows

PARTS = ("prefill", "decode", "memory", "scan")
DRAFT = "draft"  # a part that needs a model to draft with
TRAIN = "train"  # and one that takes long
PROFILE = "profile"  # and one for those who look for what costs
SCHEMA = 2
CALLS = (1, 8, 64)  # tokens of the calls whose operations are counted


@dataclass(frozen=True)
class BenchPlan:
    """What to measure.

    Args:
        prompt_lengths (Sequence[int]): Tokens of the prompts.
        cached (int): Tokens in the cache before a prompt, which then is one call.
        depths (Sequence[int]): Tokens in the cache when decoding begins.
        batch_sizes (Sequence[int]): Conversations at a time.
        scan_lengths (Sequence[int]): Tokens of the scans.
        scan_heads (Sequence[int]): State heads of the scans.
        decode_tokens (int): Tokens that a run decodes.
        draft_tokens (Sequence[int]): How many tokens a draft model guesses at a time.
        write_lengths (Sequence[int]): Tokens of history of the conversations that are learned.
        parts (Sequence[str]): Among prefill, decode, memory, scan, draft, train, profile.
        mixed (bool): Decode with conversations that only read, and with an ingest, among them.
        effort (Effort): How long to measure each.
    """

    prompt_lengths: Sequence[int] = (128, 512)
    cached: int = 0
    depths: Sequence[int] = (512,)
    batch_sizes: Sequence[int] = (1, 8)
    scan_lengths: Sequence[int] = (2048,)
    scan_heads: Sequence[int] = (1,)
    decode_tokens: int = 16
    draft_tokens: Sequence[int] = AHEAD
    write_lengths: Sequence[int] = (256, 2048)
    mixed: bool = False
    parts: Sequence[str] = PARTS
    effort: Effort = field(default_factory=Effort)

    def changed(self, **fields: Any) -> "BenchPlan":
        return replace(self, **fields)

    def prefills(self) -> list[tuple[int, int]]:
        """(batch size, prompt length) pairs: a batch in which there are more tokens than in the
        longest of the single prompts is left out."""
        most = max(self.prompt_lengths) * min(self.batch_sizes)
        return [(b, n) for b in self.batch_sizes for n in self.prompt_lengths if b * n <= most]


QUICK = BenchPlan()
FULL = BenchPlan(
    prompt_lengths=(128, 512, 2048),
    depths=(128, 2048),
    scan_lengths=(128, 512, 2048, 8192),
    scan_heads=(1, 4),
)


class MemoryRow(TypedDict):
    """What a memory costs: its shape, bytes, and operations that it adds to a
    layer's call, by the tokens of the call."""

    strategy: str
    rank: int
    heads: int
    layers: int
    state_bytes: int
    kv_bytes_per_token: int
    added_per_layer: dict[str, dict[str, float]]


@dataclass
class BenchReport:
    """What was measured, on which machine, of which model."""

    machine: dict[str, Any]
    model: dict[str, Any]
    clock: str = "wall"
    prefill: list[Row] = field(default_factory=list)
    decode: list[Row] = field(default_factory=list)
    memory: list[MemoryRow] = field(default_factory=list)
    scan: list[ScanRow] = field(default_factory=list)
    draft: list[DraftRow] = field(default_factory=list)
    train: list[TrainingRow] = field(default_factory=list)
    profile: list[ProfileRow] = field(default_factory=list)
    mixed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values; times in seconds, sizes in bytes."""
        rows = {name: [row.to_dict() for row in getattr(self, name)] for name in PARTS[:2]}
        scans = [row.to_dict() for row in self.scan]
        facts = {"schema": SCHEMA, "machine": self.machine, "model": self.model}
        facts |= {"clock": self.clock} | ({"mixed": True} if self.mixed else {})
        others = {
            name: [row.to_dict() for row in getattr(self, name)]
            for name in (DRAFT, TRAIN, PROFILE)
            if getattr(self, name)
        }
        return facts | rows | {"memory": self.memory, "scan": scans} | others


def run_bench(
    pair: Pair,
    plan: BenchPlan,
    *,
    model: dict[str, Any],
    drafting: tuple[nn.Module, Sequence[list[int]]] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> BenchReport:
    """Measure what ``plan`` asks for.

    Args:
        pair (Pair): The plain model and its patched twins.
        plan (BenchPlan): Lengths, batch sizes, effort.
        model (dict[str, Any]): What the report says of the model.
        drafting (tuple[nn.Module, list[list[int]]]): A draft model, and prompts to answer with it;
          None: there is none.
        progress (Callable): Called with a line before each figure.
    """
    report = BenchReport(machine_facts(), model, plan.effort.clock, mixed=plan.mixed)
    effort = plan.effort
    if "prefill" in plan.parts:
        for batch_size, length in plan.prefills():
            behind = f" behind {plan.cached}" if plan.cached else ""
            progress(f"Prefill of {length} tokens{behind}, batch {batch_size}")
            report.prefill += prefill_rows(pair, batch_size, length, effort, plan.cached)
    if "decode" in plan.parts:
        for batch_size in plan.batch_sizes:
            for depth in plan.depths:
                progress(f"Decode after {depth} tokens, batch {batch_size}")
                how = plan.decode_tokens, effort, plan.mixed
                report.decode += decode_rows(pair, batch_size, depth, *how)
    if PROFILE in plan.parts:
        for batch_size, length in plan.prefills():
            progress(f"Profile of a call of {length} tokens, batch {batch_size}")
            report.profile += profile_rows(pair, batch_size, length, effort, plan.cached)
    if "memory" in plan.parts:
        progress("Memory and primitives")
        report.memory = [memory_row(pair, strategy) for strategy in pair.patched]
    if DRAFT in plan.parts and drafting is not None:
        progress(f"Decoding with a draft, {len(drafting[1])} prompts")
        tokens = plan.decode_tokens
        report.draft = draft_rows(pair.patched, *drafting, plan.draft_tokens, tokens, effort)
    for length in plan.write_lengths if TRAIN in plan.parts else ():
        progress(f"Training on {length} tokens of history")
        report.train += training_rows(pair, length, effort)
    if "scan" in plan.parts:
        for heads in plan.scan_heads:
            for length in plan.scan_lengths:
                progress(f"Scan of {length} tokens, state heads: {heads}")
                report.scan += scan_rows(heads, length, effort)
    return report


def memory_row(pair: Pair, strategy: str) -> MemoryRow:
    """What one conversation keeps, and what a memory adds to a layer's decode step."""
    patched = pair.patched[strategy]
    config, layers = config_of(patched), len(memory_layers(patched))
    facts = memory_facts(patched)
    return {
        "strategy": strategy,
        "rank": config.rank,
        "heads": config.num_state_heads,
        "layers": layers,
        "state_bytes": facts["state_bytes"],
        "kv_bytes_per_token": facts["kv_bytes_per_token"],
        "added_per_layer": {
            str(tokens): added_per_layer(pair.plain, patched, tokens=tokens) for tokens in CALLS
        },
    }
