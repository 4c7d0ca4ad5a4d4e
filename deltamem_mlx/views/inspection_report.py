"""What was found, in words and tables for people."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..inspection.adapter_contents import AdapterContents
from ..inspection.holding import HeldWord
from ..inspection.memory_contents import Comparison, MemoryContents
from ..inspection.probe import Probed, given_answers
from ..inspection.trace import Trace
from .columns import bar, fields, one_line, signed, table

_STRONGEST = 8


def adapter_text(adapter: AdapterContents) -> str:
    """What an adapter holds."""
    config = adapter.config
    mode = _strategy(adapter)
    shapes = [
        f"{name} {shape} in {count} layer{'s' * (count != 1)}"
        for name, (shape, count) in adapter.tensors.items()
    ]
    head = fields(
        {
            "Adapter": adapter.name,
            "base model": _base_model(adapter.base_model),
            "fingerprint": adapter.fingerprint,
            "writes": mode,
            "corrects": f"{', '.join(config.delta_heads)} by alpha / rank = {config.scale:g}",
            "parameters": f"{adapter.parameters:,}",
            "settings": [f"{name}: {_value(v)}" for name, v in adapter.settings.items()],
            "tensors": shapes,
        }
    )
    columns = ["layer", *(f"|Δ{head}|" for head in config.delta_heads)]
    columns += ["β at rest", "smallest", "largest", "keep", "half-life"]
    rows = [
        [
            str(layer.layer),
            *(f"{layer.corrections[head]:.3f}" for head in config.delta_heads),
            *(f"{gate:.3f}" for gate in layer.write),
            f"{layer.keep:.3f}",
            f"{layer.half_life:.1f}" if np.isfinite(layer.half_life) else "never",
        ]
        for layer in adapter.layers
    ]
    legend = fields(
        {
            "|Δ|": "norm of the correction's weights, scale included",
            "β at rest": "write gate of a token that its projection adds nothing to (mean; over "
            "the layer's gates smallest, largest)",
            "half-life": "tokens after which keep gates at rest have halved what was written",
        }
    )
    return f"{head}\n\n{table(columns, rows)}\n\n{legend}"


def memory_text(memory: MemoryContents) -> str:
    """What a memory file holds."""
    state = next(iter(memory.states.values()))
    heads, r = state.shape[1:3]
    size = sum(s.nbytes for s in memory.states.values())
    count = len(memory.file.tokens_written)
    head = fields(
        {
            "Memory": memory.name,
            "base model": _base_model(memory.file.base_model),
            "adapter": memory.file.adapter,
            "conversation": f"{memory.conversation} of 0 to {count - 1}" if count > 1 else None,
            "tokens written": f"{memory.tokens_written:,}",
            "states": f"{len(memory.states)} layers of {f'{heads} × ' * (heads > 1)}{r} × {r} "
            f"numbers, {size / 1000:.1f} KB",
            "saved": memory.file.created,
            "note": memory.file.note or None,
        }
    )
    top = max((layer.norm for layer in memory.layers), default=0.0)
    rows = [
        [
            str(layer.layer),
            f"{layer.norm:.4f}",
            f"{layer.effective_rank:.2f}",
            f"{layer.largest:.4f}",
            bar(layer.norm, top),
        ]
        for layer in memory.layers
    ]
    columns = ["layer", "norm", "effective rank", "strongest", "<norm"]
    legend = fields(
        {
            "norm": "how much the state holds (Frobenius)",
            "effective rank": f"how many of its {r} directions it uses",
            "strongest": "its largest singular value",
        }
    )
    return f"{head}\n\n{table(columns, rows)}\n\n{legend}"


def held_text(held: Sequence[HeldWord]) -> str:
    """A line for each word: what the memory adds to it."""
    rows = [
        [
            one_line(word.word, 24),
            f"{word.log_prob_without:.2f}",
            f"{word.log_prob:.2f}",
            signed(word.gain),
            f"{word.strength:.3f}",
            one_line(f"{word.before} {word.word}", 60),
        ]
        for word in held
    ]
    columns = ["<word", "log p without", "with", "added", "β", "<where"]
    return table(columns, rows)


def comparison_text(comparison: Comparison) -> str:
    """How far apart two memories are."""
    a, b = comparison.a, comparison.b
    cosines = [layer.cosine for layer in comparison.layers]
    changes = [layer.change for layer in comparison.layers]
    head = fields(
        {
            "A": f"{a.name}, {a.tokens_written:,} tokens written, {a.file.created}",
            "B": f"{b.name}, {b.tokens_written:,} tokens written, {b.file.created}",
            "adapter": a.file.adapter if comparison.same_adapter else "not the same",
            "cosine": f"{np.mean(cosines):.3f} (mean over layers; 1: same direction, 0: unrelated)",
            "distance": f"{np.mean(changes):.3f} (mean over layers; 0: the same, 1: one is empty, "
            "2: opposite)",
        }
    )
    rows = [
        [
            str(layer.layer),
            f"{layer.cosine:.3f}",
            f"{layer.change:.3f}",
            f"{of_a.norm:.4f}",
            f"{of_b.norm:.4f}",
        ]
        for layer, of_a, of_b in zip(comparison.layers, a.layers, b.layers, strict=True)
    ]
    return f"{head}\n\n{table(['layer', 'cosine', 'distance', 'norm of A', 'norm of B'], rows)}"


def probe_text(probed: Sequence[Probed]) -> str:
    """Answers with and without memory, and what the memory adds to each."""
    parts = []
    columns = ["<answer", "log p without", "with", "added", "per token without", "with", "<text"]
    for phrasing in probed:
        rows = [
            [
                answer.source,
                f"{answer.log_prob_without:.2f}",
                f"{answer.log_prob:.2f}",
                signed(answer.gain),
                _percent(answer.log_prob_without, answer.tokens),
                _percent(answer.log_prob, answer.tokens),
                one_line(answer.in_place) or "(nothing)",
            ]
            for answer in phrasing.answers
        ]
        parts.append(f"{one_line(phrasing.phrasing)}\n{table(columns, rows)}")
    rows = [
        [f"{len(probed)}", f"{given.log_prob_without:.2f}", f"{given.log_prob:.2f}",
         signed(given.gain), f"{given.first} of {len(probed)}", one_line(given.text)]
        for given in given_answers(probed)
    ]  # fmt: skip
    if rows:
        columns = ["phrasings", "log p without", "with", "added", "likeliest in", "<text"]
        parts.append(f"Answers given, mean over phrasings\n{table(columns, rows)}")
    legend = {
        "log p": "natural log of the probability of the answer, without and with the memory",
        "added": "their difference: +1 makes the answer 2.7 times as likely",
        "per token": "geometric mean of the probability of its tokens",
    }
    if any(answer.after for phrasing in probed for answer in phrasing.answers):
        legend["(…)"] = "what an answer says before the words that were scored"
    return "\n\n".join([*parts, fields(legend)])


def trace_text(trace: Trace, name: str) -> str:
    """Turn by turn: how strongly it was written, how far it moved the state, what is left."""
    kind = trace.kind
    rows = []
    if trace.marks[0] == 0:
        rows.append(["0", "memory", *[""] * 3, *_later(trace, 0), "as it was given"])
    for n, (start, turn) in enumerate(zip(trace.starts, trace.turns, strict=True), start=1):
        beta = f"{trace.write[start : turn.end].mean():.3f}"
        told = [str(n), turn.role, str(turn.end - start), beta, f"{trace.turn_moved[n - 1]:.2f}"]
        rows.append([*told, *_later(trace, turn.end), one_line(turn.text, 40)])
    columns = [kind, "<who", "tokens", "β", "moved", "similar", "beyond", "let through"]
    columns += ["overwritten", "<text"]
    head = fields(
        {
            "Trace": f"{name}: {len(trace.pieces):,} tokens, {len(trace.layers)} layers",
            "written most": _strongest(trace),
        }
    )
    legend = fields(
        {
            "β": "mean write gate of its tokens, over all layers",
            "moved": "relative change of the state over it (0: none, 1: from empty, 2: opposite)",
            "similar": "cosine similarity, at the end of all, of the state to that at its own end",
            "beyond": "the same without what the states of this trace share",
            "let through": "share of the state at its end that keep gates let through to the end "
            "of all; erasing takes more",
            "overwritten": "tokens until 'beyond' fell below 0.5",
        }
    )
    return f"{head}\n\n{table(columns, rows)}\n\n{legend}"


def _later(trace: Trace, mark: int) -> list[str]:
    """What is left at the end of all of the state at a mark, and how soon it was overwritten."""
    if mark == trace.marks[-1]:
        return [""] * 4
    at, gone = trace.marks.index(mark), trace.overwritten_after(mark)
    return [
        f"{trace.similarity[at, -1]:.2f}",
        f"{trace.contrast[at, -1]:.2f}",
        "" if trace.survival is None else f"{trace.survival[at, -1]:.2f}",
        "not yet" if gone is None else f"{gone:,}",
    ]


def tokens_text(trace: Trace) -> str:
    """Token by token: how strongly it was written and how far it moved the state."""
    beta = trace.write.mean(axis=1)
    top = float(beta.max())
    ends = {turn.end: n for n, turn in enumerate(trace.turns, start=1)}
    rows, turn = [], 1
    for i, (piece, value) in enumerate(zip(trace.pieces, beta, strict=True)):
        rows.append(
            [str(turn), str(i), f"{value:.3f}", f"{trace.moved[i]:.3f}", bar(float(value), top, 16),
             repr(piece)[1:-1]]
        )  # fmt: skip
        turn = ends.get(i + 1, turn - 1) + 1
    return table([trace.kind, "token", "β", "moved", "<β", "<text"], rows)


def _strategy(adapter: AdapterContents) -> str:
    config = adapter.config
    what = {
        "token": "every token",
        "message_mean": "once a message",
        "sentence_mean": "once a sentence",
    }[config.memory_write_granularity]
    heads = config.num_state_heads
    states = f"{heads} states" if heads > 1 else "one state"
    return f"{what}, to {states} of {config.rank} × {config.rank} a layer"


def _strongest(trace: Trace) -> str:
    beta = trace.write.mean(axis=1)
    order = np.argsort(-beta, kind="stable")[:_STRONGEST]
    return ", ".join(
        f"{trace.pieces[i].strip() or trace.pieces[i]!r} ({beta[i]:.3f})" for i in order
    )


def _base_model(values: dict[str, Any]) -> str:
    known = [str(values["name"])] if values.get("name") else []
    known += [str(values["model_type"])] if values.get("model_type") else []
    names = {"num_layers": "{} layers", "hidden_size": "hidden size {}"}
    known += [text.format(values[key]) for key, text in names.items() if values.get(key)]
    return ", ".join(known) or "unknown"


def _percent(log_prob: float, tokens: int) -> str:
    return f"{100 * np.exp(log_prob / max(tokens, 1)):.1f} %"


def _value(value: object) -> str:
    return (", ".join(map(str, value)) or "all") if isinstance(value, list) else str(value)
