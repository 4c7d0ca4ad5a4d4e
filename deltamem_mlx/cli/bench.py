"""`deltamem-mlx bench`: what a memory costs, beside the plain model in one run."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.errors import UsageError
from deltamem_mlx.cli.frame.load import load_draft_model, load_pair
from deltamem_mlx.cli.options import bench as b
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    import mlx.nn as nn

    from deltamem_mlx.bench import BenchPlan, BenchReport, Pair


@dataclass(frozen=True)
class BenchOptions:
    """What `bench` was asked for."""

    model: o.Model = None
    adapter: o.Adapter = None
    draft_model: o.DraftModel = None
    num_draft_tokens: b.DraftTokens = None
    shape: b.Shape = None
    layers: b.Layers = None
    bits: b.Bits = None
    dtype: b.DTypeChoice = None
    only: b.Only = None
    strategies: b.Strategies = None
    prompt_lengths: b.PromptLengths = None
    cached: b.Cached = 0
    depths: b.Depths = None
    write_lengths: b.WriteLengths = None
    batch_sizes: b.BatchSizes = None
    mixed: b.Mixed = False
    profile: b.Profile = False
    scan_lengths: b.ScanLengths = None
    decode_tokens: b.DecodeTokens = 16
    full: b.Full = False
    seconds: b.Seconds = None
    rounds: b.Rounds = None
    clock: b.ClockChoice = b.Clock.WALL
    seed: b.Seed = None
    trust_remote_code: o.TrustRemoteCode = False
    plot: b.Plot = None
    json: o.Json = False


@command(
    "deltamem-mlx bench",
    "deltamem-mlx bench --model mlx-community/Qwen3-4B-Instruct-2507-4bit --full --plot bench.png",
    "deltamem-mlx bench --model MODEL --adapter ADAPTER --json > bench.json",
    "deltamem-mlx bench --shape qwen3-4b --layers 2 --bits 4 --only prefill,decode",
    "deltamem-mlx bench --only prefill --cached 64 --prompt-lengths 2,8,32",
    "deltamem-mlx bench --profile --strategies TSW,MSW --cached 64",
    "deltamem-mlx bench --only scan --scan-lengths 2048",
)
def bench(options: BenchOptions) -> None:
    """Measure what a memory costs.

    The plain model and the same model with a memory run in turn, in one process and on one set of
    weights: prefill, decode, peak memory; then the scan alone. Figures are medians; a ratio is the
    median over the rounds, with its 95 % interval (with five rounds or fewer, its extremes).

    The weights are those of --model, or random ones in the shape of a known model. Without
    --adapter, the memory is an untrained one with the settings of the released adapter.
    """
    real = _check(options)
    lengths = {
        "prompt_lengths": _numbers("--prompt-lengths", options.prompt_lengths),
        "depths": _numbers("--depths", options.depths),
        "batch_sizes": _numbers("--batch-sizes", options.batch_sizes),
        "write_lengths": _numbers("--write-lengths", options.write_lengths),
        "draft_tokens": _numbers("--num-draft-tokens", options.num_draft_tokens),
        "scan_lengths": _numbers("--scan-lengths", options.scan_lengths),
    }

    from deltamem_mlx.bench import STRATEGIES, Effort, run_bench

    full, seed = options.full, options.seed or 0
    default = list(STRATEGIES) if full else ["TSW"]
    names = _chosen("--strategies", options.strategies, STRATEGIES) or default
    seconds = options.seconds
    if seconds is None:
        seconds = b.FULL_SECONDS if full else b.SECONDS
    effort = Effort(rounds=options.rounds, seconds=seconds, clock=options.clock.value)
    plan = _plan(lengths, options, effort).changed(cached=options.cached, mixed=options.mixed)
    _check_plot(options.plot, plan)
    drafting = None
    if real:
        pair, facts, drafting = _real(options, names, seed)
    else:
        shape = options.shape or b.DEFAULT_SHAPE
        pair, facts = _random(shape, options.layers, options.bits, options.dtype, names, seed)
    _hint()
    report = run_bench(
        pair,
        plan,
        model=facts,
        drafting=drafting,
        progress=lambda text: output.note(f"{text} …"),
    )
    _show(report, options.json)
    if options.plot is not None:
        _draw(report, options.plot)


def _check(options: BenchOptions) -> bool:
    """Whether a real model is meant; raises UsageError for flags that do not go together."""
    real = options.model is not None or options.adapter is not None
    random = (options.shape, options.layers, options.bits, options.dtype)
    if real and any(value is not None for value in random):
        raise UsageError("--shape, --layers, --bits, --dtype: only without --model and --adapter.")
    if options.draft_model is not None and not real:
        raise UsageError("--draft-model: only with --model or --adapter.")
    if options.draft_model is None and options.num_draft_tokens is not None:
        raise UsageError("--num-draft-tokens: only with --draft-model.")
    if options.adapter is not None and options.strategies is not None:
        raise UsageError("--strategies: an --adapter has its own; give one of the two.")
    if options.seconds is not None and options.rounds is not None:
        raise UsageError("--seconds, --rounds: give one of the two.")
    return real


def _numbers(flag: str, value: str | None) -> list[int] | None:
    """Positive whole numbers out of a list with commas, in order and once each."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    if not all(word.isascii() and word.isdecimal() and int(word) > 0 for word in words):
        raise UsageError(f"{flag}: {value!r} is not a list of positive numbers, like 128,512.")
    return sorted({int(word) for word in words})


def _chosen(flag: str, value: str | None, known: Collection[str]) -> list[str] | None:
    """Names out of a list with commas, once each; all must be known."""
    if value is None:
        return None
    names = list(dict.fromkeys(word.strip() for word in value.split(",")))
    unknown = [repr(name) for name in names if name not in known]
    if unknown:
        raise UsageError(f"{flag}: {', '.join(unknown)}: expected some of {', '.join(known)}.")
    return names


def _check_plot(plot: Path | None, plan: "BenchPlan") -> None:
    """Raises before anything is measured: UsageError, or ImportError without matplotlib."""
    if plot is None:
        return
    if not {"prefill", "decode", "scan"} & {*plan.parts}:
        raise UsageError("--plot: drawn are prefill, decode and scan; none of them is measured.")
    from deltamem_mlx.views.figures import suffixes

    if plot.suffix.lower() not in suffixes():
        raise UsageError(
            f"--plot: {str(plot)!r} does not end as a picture's name; expected one of "
            f"{', '.join(suffixes())}."
        )


def _plan(
    lengths: dict[str, list[int] | None], options: BenchOptions, effort: object
) -> "BenchPlan":
    from deltamem_mlx.bench import CALLS, DRAFT, FULL, PARTS, PROFILE, QUICK, TRAIN

    usual = PARTS if options.draft_model is None else (DRAFT,)
    if options.profile:
        usual = (PROFILE,)
    parts = _chosen("--only", options.only, (*PARTS, DRAFT, TRAIN)) or usual
    if options.profile:
        parts = (*parts, PROFILE) if options.only else parts
        if lengths["prompt_lengths"] is None and "prefill" not in parts:
            lengths["prompt_lengths"] = list(CALLS)
    if options.mixed and "decode" not in parts:
        raise UsageError("--mixed: only with decode among the parts.")
    if DRAFT in parts and options.draft_model is None:
        raise UsageError("--only draft: give a --draft-model.")
    if TRAIN not in parts and options.write_lengths is not None:
        raise UsageError("--write-lengths: only with --only train.")
    given = {name: values for name, values in lengths.items() if values is not None}
    tokens = options.decode_tokens
    plan = FULL if options.full else QUICK
    return plan.changed(parts=parts, decode_tokens=tokens, effort=effort, **given)


def _real(
    options: BenchOptions, strategies: list[str], seed: int
) -> tuple["Pair", dict[str, Any], "tuple[nn.Module, list[list[int]]] | None"]:
    """The models of `--model` and `--adapter`, what the report says of them, and a draft with what
    it is tried on."""
    from deltamem_mlx.bench import prompts_for, with_plain_twin, with_random_adapters
    from deltamem_mlx.model.patch import attachment, is_attached

    model, adapter, trust = options.model, options.adapter, options.trust_remote_code
    loaded, tokenizer = load_pair(model, adapter, trust_remote_code=trust)
    draft = load_draft_model(options.draft_model, loaded, tokenizer, trust_remote_code=trust)
    drafting = None if draft is None else (draft, prompts_for(tokenizer))
    name = model if adapter is None else attachment(loaded).base_model
    facts = {"name": name, "layers": len(loaded.layers), "random_weights": False}
    facts |= {"bits": None, "dtype": None, "adapter": adapter}
    if is_attached(loaded):
        if options.strategies is not None:
            raise UsageError(f"--strategies: {name} comes with an adapter, which has its own.")
        facts["adapter"] = adapter or model
        return with_plain_twin(loaded), facts, drafting
    return with_random_adapters(loaded, strategies, seed), facts, drafting


def _random(
    name: str,
    layers: int | None,
    bits: int | None,
    dtype: b.DType | None,
    strategies: list[str],
    seed: int,
) -> tuple["Pair", dict[str, Any]]:
    """Models of random weights, and what the report says of them."""
    import mlx.core as mx

    from deltamem_mlx.bench import SHAPES, random_model, shape_config, with_random_adapters

    _chosen("--shape", name, SHAPES)
    total = SHAPES[name]["num_hidden_layers"]
    layers = min(b.DEFAULT_LAYERS, total) if layers is None else layers
    if layers > total:
        raise UsageError(f"--layers: {layers} asked for, but {name} has {total}.")
    on_cpu = mx.default_device().type == mx.DeviceType.cpu
    kind = dtype or (b.DType.FLOAT32 if on_cpu else b.DType.BFLOAT16)
    output.note(f"Random weights for {layers} of {total} layers of {name} …")
    config = shape_config(name, layers)
    built = random_model(config, bits=bits, dtype=getattr(mx, kind.value), seed=seed)
    facts = {"name": name, "layers": layers, "random_weights": True}
    facts |= {"bits": bits, "dtype": kind.value, "adapter": None}
    return with_random_adapters(built, strategies, seed), facts


def _hint() -> None:
    from deltamem_mlx.bench.machine import blas_hint

    hint = blas_hint()
    if hint is not None:
        output.warn(hint)


def _show(report: "BenchReport", as_json: bool) -> None:
    from deltamem_mlx.views.bench_report import report_text

    if as_json:
        output.result_json(report.to_dict())
    else:
        output.result(report_text(report))


def _draw(report: "BenchReport", path: Path) -> None:
    from deltamem_mlx.views.bench_plot import draw_bench
    from deltamem_mlx.views.figures import save

    save(draw_bench(report), path)
    output.note(f"Drew {path}.")
