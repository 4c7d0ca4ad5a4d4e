"""A bench report as tables for the terminal."""

import io
from collections import Counter
from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..bench.drafting import DraftRow
from ..bench.generation import Row
from ..bench.profile import ProfileRow
from ..bench.run import BenchReport, MemoryRow
from ..bench.scan import ScanRow
from ..bench.timing import Samples
from ..bench.training import WAYS, TrainingRow


def report_text(report: BenchReport) -> str:
    """The report in tables, as wide as they need to be."""
    sink = io.StringIO()
    console = Console(file=sink, width=200, force_terminal=False)
    for title, table in tables(report):
        console.print(f"\n{title}\n")
        console.print(table)
    lines = [headline(report), *sink.getvalue().splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def headline(report: BenchReport) -> str:
    """Model and machine in two lines."""
    model, machine = report.model, report.machine
    parts = [str(model["name"])]
    parts += [f"{model['layers']} layers"] if model.get("layers") else []
    parts += [f"{model['bits']} bits"] if model.get("bits") else []
    parts += [str(model["dtype"])] if model.get("dtype") else []
    parts += ["random weights"] if model.get("random_weights") else []
    parts += [f"adapter {model['adapter']}" if model.get("adapter") else "untrained adapter"]
    where = [f"{machine['device']}, {machine['cores']} cores", str(machine["system"])]
    where += [f"mlx {machine['mlx']}", f"mlx-lm {machine['mlx_lm']}"]
    where += [f"BLAS {machine['blas']}"] if machine["blas"] else []
    where += ["processor time"] if report.clock == "cpu" else []
    return ", ".join(parts) + "\n" + ", ".join(where)


def tables(report: BenchReport) -> Iterator[tuple[str, Table]]:
    """A title and a table for each part that was measured."""
    if report.prefill:
        yield prefill_title(report.prefill), prefill(report.prefill)
    if report.decode:
        title = "Decode: time per step; tokens per second of the whole batch"
        mixed = "; every second conversation only reads" if report.mixed else ""
        yield title + mixed, decode(report.decode)
    if report.profile:
        yield (
            "Where a memory's time goes, a layer; parts alone, calls beside the plain model's",
            (profile(report.profile)),
        )
    if report.train:
        yield (
            "Training: an update on one conversation, beside mlx_lm.lora's",
            training(report.train),
        )
    if report.draft:
        yield "Greedy answers with a memory, with and without a draft", draft(report.draft)
    if report.memory:
        title = "What a conversation keeps, and the primitives (kernels) it adds to a layer's call"
        yield title, memory(report.memory)
    if report.scan:
        title = "The scan alone, batch 1, rank 8; × is the gain over the recurrent form"
        yield title, scan(report.scan)


def prefill_title(rows: list[Row]) -> str:
    if cached := rows[0].cached:
        return f"One call behind {cached} cached tokens, with all its logits; memory it takes"
    return "Prefill: time to the first token; memory above the weights"


def prefill(rows: list[Row]) -> Table:
    table = _table(
        *("memory", "batch", "prompt", "plain s", "patched s", "plain t/s", "patched t/s"),
        *("time ×", "memory ×"),
    )
    for row in rows:
        plain, patched = row.peak or (0, 0)
        table.add_row(
            *(row.strategy, str(row.batch_size), str(row.length)),
            *(f"{row.plain.median:.3g}", f"{row.patched.median:.3g}"),
            *(_speed(row, row.plain), _speed(row, row.patched), _spread(row.ratio)),
            f"{patched / plain:.2f}" if plain else "",
        )
    return table


def decode(rows: list[Row]) -> Table:
    table = _table(
        *("memory", "batch", "depth", "plain ms", "patched ms", "plain t/s", "patched t/s"),
        "time ×",
    )
    for row in rows:
        table.add_row(
            *(row.strategy, str(row.batch_size), str(row.length)),
            *(_ms(row.plain), _ms(row.patched)),
            *(_speed(row, row.plain), _speed(row, row.patched), _spread(row.ratio)),
        )
    return table


def profile(rows: list[ProfileRow]) -> Table:
    table = _table("memory", "batch", "tokens", "part", "µs", "% of plain", "operations", "which")
    for row in rows:
        which = ", ".join(f"{n} {name}" for name, n in _named(row.operations).most_common(6))
        table.add_row(
            *(row.strategy, str(row.batch_size), str(row.tokens), row.part),
            *(f"{row.seconds.median * 1e6:.0f}", f"{row.share:.1%}"),
            *(str(row.operations.total() or ""), which),
        )
    return table


def _named(operations: Counter[str]) -> Counter[str]:
    """The same with one name for all fused kernels."""
    found: Counter[str] = Counter()
    for name, n in operations.items():
        found["fused" if name.startswith("Compiled") else name] += n
    return found


def training(rows: list[TrainingRow]) -> Table:
    table = _table("memory", "written", "way", "ms", "t/s", "MB above the weights", "time ×")
    for row in rows:
        for way in WAYS:
            seconds = row.seconds[way]
            table.add_row(
                *(row.strategy, str(row.written), way, _ms(seconds)),
                *(f"{row.tokens / seconds.median:.0f}", f"{row.peak[way] / 1e6:.0f}"),
                "" if way == WAYS[0] else _spread(row.ratio(way)),
            )
    return table


def draft(rows: list[DraftRow]) -> Table:
    table = _table(
        *("memory", "ahead", "tokens", "accepted", "same answers", "plain t/s", "drafted t/s"),
        "time ×",
    )
    for row in rows:
        plain, drafted = (row.tokens / s.median for s in (row.plain, row.drafting))
        table.add_row(
            *(row.strategy, str(row.ahead), str(row.tokens), f"{row.acceptance:.0%}"),
            *(f"{row.same} of {row.prompts}", f"{plain:.3g}", f"{drafted:.3g}"),
            _spread(row.ratio),
        )
    return table


def memory(rows: list[MemoryRow]) -> Table:
    calls = list(rows[0]["added_per_layer"])
    table = _table(
        *("memory", "states", "bytes", "one token's KV"),
        *(f"of {n} token{'s' * (n != '1')}" for n in calls),
    )
    for row in rows:
        added = row["added_per_layer"]
        table.add_row(
            str(row["strategy"]),
            f"{row['layers']}×{row['heads']}×{row['rank']}×{row['rank']}",
            f"{row['state_bytes']:,}",
            f"{row['kv_bytes_per_token']:,}",
            *(f"{added[n]['primitives']:g} (≤ {added[n]['kernels']:g})" for n in calls),
        )
    return table


def scan(rows: list[ScanRow]) -> Table:
    table = _table(
        *("form", "heads", "tokens", "forward ms", "×", "with gradients ms", "× "),
    )
    for row in rows:
        table.add_row(
            *(row.form, str(row.heads), str(row.length)),
            *(_ms(row.forward), f"{row.speedup[0].median:.1f}"),
            *(_ms(row.backward), f"{row.speedup[1].median:.1f}"),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _speed(row: Row, seconds: Samples) -> str:
    speed = row.speed(seconds)
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.1f}"


def _ms(seconds: Samples) -> str:
    ms = seconds.median * 1e3
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.3g}"


def _spread(ratio: Samples) -> str:
    """Median and its interval."""
    low, high = ratio.interval
    return f"{ratio.median:.3f} ({low:.2f}–{high:.2f})"
