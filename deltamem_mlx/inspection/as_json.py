"""What was found, as JSON values."""

import math
from collections.abc import Sequence

import numpy as np

from .adapter_contents import AdapterContents
from .holding import HeldWord
from .memory_contents import Comparison, MemoryContents
from .probe import Probed, given_answers
from .trace import Trace

Json = dict[str, object]


def adapter_json(adapter: AdapterContents) -> Json:
    """What an adapter holds; a half-life of null is one that never comes."""
    return {
        "kind": "adapter",
        "name": adapter.name,
        "base_model": adapter.base_model,
        "fingerprint": adapter.fingerprint,
        "parameters": adapter.parameters,
        "settings": adapter.settings,
        "tensors": {
            name: {"shape": shape, "layers": count}
            for name, (shape, count) in adapter.tensors.items()
        },
        "layers": [
            {
                "layer": layer.layer,
                "corrections": layer.corrections,
                "write": dict(zip(("mean", "min", "max"), layer.write, strict=True)),
                "keep": layer.keep,
                "half_life": layer.half_life if math.isfinite(layer.half_life) else None,
            }
            for layer in adapter.layers
        ],
    }


def memory_json(memory: MemoryContents) -> Json:
    """What a memory file holds."""
    return {
        "kind": "memory",
        "name": memory.name,
        "base_model": memory.file.base_model,
        "adapter": memory.file.adapter,
        "conversations": len(memory.file.tokens_written),
        "conversation": memory.conversation,
        "tokens_written": memory.tokens_written,
        "created": memory.file.created,
        "note": memory.file.note,
        "state_shape": list(next(iter(memory.states.values())).shape[1:]),
        "layers": [vars(layer) for layer in memory.layers],
    }


def comparison_json(comparison: Comparison) -> Json:
    """Two memories and how far apart they are."""
    return {
        "kind": "comparison",
        "a": memory_json(comparison.a),
        "b": memory_json(comparison.b),
        "same_adapter": comparison.same_adapter,
        "cosine": float(np.mean([layer.cosine for layer in comparison.layers])),
        "change": float(np.mean([layer.change for layer in comparison.layers])),
        "layers": [vars(layer) for layer in comparison.layers],
    }


def probe_json(probed: Sequence[Probed], memory: MemoryContents) -> Json:
    """Answers with and without memory, and what the memory adds to each."""
    return {
        "kind": "probe",
        "memory": memory.name,
        "phrasings": [
            {
                "phrasing": one.phrasing,
                "answers": [vars(answer) | {"gain": answer.gain} for answer in one.answers],
            }
            for one in probed
        ],
        "given": [vars(given) | {"gain": given.gain} for given in given_answers(probed)],
    }


def trace_json(trace: Trace, name: str, *, by_token: bool = False) -> Json:
    """A trace: its turns, and their retention at the later marks; tokens if asked for."""
    values: Json = {
        "kind": "trace",
        "name": name,
        "tokens": len(trace.pieces),
        "layers": trace.layers,
        "granularity": trace.granularity,
        "marks": trace.marks,
        "moved": {"tokens": trace.steps, "change": _rounded(trace.moved)},
        "turns": [
            {
                "role": turn.role,
                "text": turn.text,
                "start": start,
                "end": turn.end,
                "write": float(trace.write[start : turn.end].mean()),
                "moved": moved,
                "overwritten_after": trace.overwritten_after(turn.end),
                "retention": _retention(trace, turn.end),
            }
            for start, turn, moved in zip(trace.starts, trace.turns, trace.turn_moved, strict=True)
        ],
    }
    if trace.marks[0] == 0:
        values["start"] = {
            "overwritten_after": trace.overwritten_after(0),
            "retention": _retention(trace, 0),
        }
    if by_token:
        values["by_token"] = {
            "text": trace.pieces,
            "write": _rounded(trace.write.mean(axis=1)),
            "write_by_layer": [_rounded(row) for row in trace.write],
        }
    return values


def _retention(trace: Trace, mark: int) -> Json:
    at = trace.marks.index(mark)
    return {
        "tokens_since": [m - mark for m in trace.marks[at:]],
        "similarity": _rounded(trace.similarity[at, at:]),
        "contrast": _rounded(trace.contrast[at, at:]),
        "survival": None if trace.survival is None else _rounded(trace.survival[at, at:]),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return np.asarray(values, np.float64).round(6).tolist()


def held_json(held: Sequence[HeldWord], name: str, text: str) -> Json:
    """What a memory holds of a text."""
    words = [vars(word) | {"gain": word.gain} for word in held]
    return {"kind": "told", "memory": name, "text": text, "words": words}
