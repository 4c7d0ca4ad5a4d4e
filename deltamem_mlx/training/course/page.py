"""One page: what a course's adapter is worth, and what it cost."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...adapters.card import model_card
from ...adapters.files import AdapterFiles
from ...bench.machine import machine_facts
from ...model.names import public_name
from .viewing import Planned

Values = Mapping[str, Any]

CELL_NAMES = {
    "told": "told {facts}",
    "updated": "changed, of {facts}",
    "never": "never told, of {facts}",
}
CONDITIONS = {
    "memory": "its memory",
    "none": "empty memory",
    "foreign": "another's",
    "mean": "mean of others",
    "context": "in the context",
}
BEFORE = "\n## What it holds\n"


def figures_text(results: Mapping[str, Values], planned: Sequence[Planned], seed: int) -> str:
    """The page, in Markdown.

    Args:
        results (Mapping[str, Values]): What the steps wrote down, by name.
        planned (Sequence[Planned]): The steps.
        seed (int): Of the course.
    """
    worth = results["measure"]["result"]
    return "\n".join(
        [
            "## What it remembers",
            "",
            *_recall(worth["recall"]),
            "",
            *_harm(worth),
            "",
            "## How it was made",
            "",
            *_cost(results, planned, seed),
        ]
    )


def card(adapter: AdapterFiles, folder: Path, page: str) -> str:
    """The adapter's card: the page in a model card."""
    sizes = {
        name: (folder / name).stat().st_size
        for name in ("adapter_config.json", "adapters.safetensors")
    }
    if name := public_name(adapter.base_name):
        adapter = replace(adapter, base_model=adapter.base_model | {"name": name})
    text = model_card(adapter, folder.resolve().name or "adapter", sizes)
    return text.replace(BEFORE, f"\n{page}\n{BEFORE}", 1)


def _recall(cells: Sequence[Values]) -> Iterator[str]:
    there = [name for name in CONDITIONS if name in cells[0]["conditions"]]
    yield (
        "Right answers in per cent with 95 % intervals, after the context was dropped; names, "
        "wordings and, but for the months, values are in no training conversation."
    )
    yield ""
    yield f"| facts | questions | {' | '.join(CONDITIONS[name] for name in there)} |"
    yield "| --- " * (2 + len(there)) + "|"
    for cell in cells:
        name = CELL_NAMES[cell["kind"]].format(**cell)
        if cell["distractors"]:
            name += f", then {cell['distractors']} turns of chat"
        found = [cell["conditions"].get(condition) for condition in there]
        texts = [
            "–" if own is None else _per_cent(own["accuracy"], own["low"], own["high"])
            for own in found
        ]
        yield f"| {name} | {cell['questions']} | {' | '.join(texts)} |"
    for cell in cells:
        if plain := cell.get("as_plain", {}).get("memory"):
            yield ""
            yield (
                f"What was never told is answered as without the adapter in "
                f"{100 * plain['accuracy']:.0f} % ({100 * plain['low']:.0f}–"
                f"{100 * plain['high']:.0f}): the same first tokens, or both say that they do "
                "not know."
            )


def _harm(worth: Values) -> Iterator[str]:
    ratio = worth["perplexity"]["ratio"]
    yield (
        f"Perplexity of text that it was not trained on, beside the plain model's: "
        f"{100 * ratio['value']:.1f} % ({100 * ratio['low']:.1f}–{100 * ratio['high']:.1f}, "
        f"{worth['perplexity']['passages']} passages)."
    )
    last = worth["silence"][-1]
    parts = [
        f"{last[name]['nats']:.2f} nats ({last[name]['low']:.2f}–{last[name]['high']:.2f}) {after}"
        for name, after in (
            ("facts", "after four facts"),
            ("chat", "after a long chat of two people"),
        )
        if name in last
    ]
    yield ""
    yield (
        "Silence: the first token of answers to questions that have nothing to do with what was "
        f"told is {' and '.join(parts)} away from the plain model's (KL, {last['questions']} "
        "questions; 0 is a memory that changes nothing)."
    )


def _cost(results: Mapping[str, Values], planned: Sequence[Planned], seed: int) -> Iterator[str]:
    tokens = sum(found["result"].get("tokens", 0) for found in results.values())
    seconds = sum(found["seconds"] for found in results.values())
    machine = machine_facts()
    where = f"{machine['device']}, {machine['cores']} cores, {machine['system']}"
    where += f", mlx {machine['mlx']}, mlx-lm {machine['mlx_lm']}"
    if machine["blas"]:
        where += f", BLAS: {machine['blas']}"
    yield (
        f"By `deltamem-mlx train` without data, its own course, seed {seed}: {tokens:,} tokens "
        f"written and read in training, {_duration(seconds)} in all, on {where}."
    )
    yield ""
    yield (
        "The loss is that of held-out conversations: with the own memory / an empty one / another "
        "conversation's. The last less the first is what is remembered."
    )
    yield ""
    yield "| step | it teaches or does | iterations | time | held-out loss |"
    yield "| --- | --- | --- | --- | --- |"
    for step in planned:
        found = results[step.name]
        names = ("loss", "loss with an empty memory", "loss with another's")
        losses = [found["result"].get(name) for name in names]
        shown = " / ".join(f"{loss:.3f}" for loss in losses if loss is not None)
        iters = str(found["result"].get("iterations", step.iters or ""))
        yield f"| {step.name} | {step.does} | {iters} | {_duration(found['seconds'])} | {shown} |"


def _per_cent(value: float, low: float, high: float) -> str:
    return f"{100 * value:.0f} ({100 * low:.0f}–{100 * high:.0f})"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
