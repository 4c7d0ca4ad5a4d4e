"""What was found, in a sentence or two; ``inspection_report`` has the figures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..inspection.adapter_contents import AdapterContents
from ..inspection.holding import HELD, HeldWord
from ..inspection.memory_contents import Comparison, MemoryContents
from ..inspection.probe import GivenAnswer, Probed, given_answers
from ..inspection.trace import Trace
from .columns import one_line, up_to

_LONGEST = 200
_MOST = 12  # words that are named
# Below this, in nats, a difference is no news: a tenth more or less likely.
_NOTHING = 0.1
# Of the strength of the strongest word: the others are what every word is written with.
_STRONG = 0.4
_KEPT = 0.5  # of what a turn wrote: from here on it counts as kept


def probe_words(probed: Sequence[Probed]) -> str:
    """What a memory answers and what the model does without it; what it adds to answers given."""
    said, without = (_quoted(text) for text in _both(probed[0]))
    if said == without:
        lines = [f"It says {said}, with the memory and without."]
    else:
        lines = [_ended(f"It says {said}; without the memory {without}")]
    others = Counter(_quoted(_both(one)[0]) for one in probed[1:])
    if same := others.pop(said, 0):
        ways = f"{len(probed) - 1} other ways" if len(probed) > 2 else "another way"
        lines.append(f"Asked in {ways} it says the same {_times(same)}.")
    if others:
        more = ", ".join(f"{text} {_times(count)}" for text, count in others.most_common())
        lines.append(_ended(f"Asked otherwise it says {more}"))
    given = given_answers(probed)
    lines += [_gain(answer, len(probed), len(given)) for answer in given]
    return "\n".join(lines)


def _both(probed: Probed) -> tuple[str, str]:
    """The answers with the memory and without: the first two that were not only scored."""
    own = [answer.text for answer in probed.answers if answer.source != "given"]
    return own[0], own[-1]


def _quoted(text: str) -> str:
    return f"'{one_line(text, _LONGEST)}'" if text.strip() else "nothing"


def _ended(sentence: str) -> str:
    """With a full stop, where a quotation does not bring its own."""
    return sentence if sentence.endswith((".'", "!'", "?'")) else f"{sentence}."


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def _gain(answer: GivenAnswer, phrasings: int, given: int) -> str:
    how = f"{_quoted(answer.text)} is {_likely(answer.gain)}"
    if phrasings > 1:
        how += f", in the mean over {phrasings} ways to ask"
    if given > 1 and answer.first:
        how += f"; of the {given} given it is the likeliest"
        how += f" in {answer.first}" if phrasings > 1 else ""
    return f"{how}."


def _likely(gain: float) -> str:
    if abs(gain) < _NOTHING:
        return "as likely with the memory as without"
    factor = math.exp(min(abs(gain), math.log(1e6)))
    many = "more than a million" if factor > 0.999e6 else f"{float(f'{factor:.2g}'):,g}"
    return f"{many} times as {'likely' if gain > 0 else 'unlikely'} with the memory"


def memory_words(memory: MemoryContents) -> str:
    """What a memory holds."""
    name, model = Path(memory.name).name, memory.file.base_model.get("name") or "an unnamed model"
    size = sum(state.nbytes for state in memory.states.values())
    kept = f"{len(memory.states)} layers of {model}, {size / 1000:.1f} KB"
    if not any(layer.norm for layer in memory.layers):
        return f"{name} is empty: nothing is written into it ({kept})."
    written, told = memory.tokens_written, memory.file.told
    answers = told.turns if told else 0
    among = f", {answers} answer{'s' * (answers != 1)} among them" if answers else ""
    r = next(iter(memory.states.values())).shape[-1]
    used = float(np.mean([layer.effective_rank for layer in memory.layers]))
    most = max(memory.layers, key=lambda layer: layer.norm)
    have = "token has" if written == 1 else "tokens have"
    lines = [
        f"{written:,} {have} been written into {name}{among}: {kept}.",
        f"It uses about {used:.0f} of {r} directions, and holds most in layer {most.layer}.",
    ]
    if memory.file.note:
        lines.append(f"Its note: {_quoted(memory.file.note)}")
    if past := len(memory.file.history):
        last = "last turn" if past == 1 else f"last {past} turns"
        lines.append(f"Its {last} can be taken back.")
    return "\n".join(lines)


def held_words_text(held: Sequence[HeldWord], name: str, text: str) -> str:
    """What a memory holds of a text, and what it does not."""
    name = Path(name).stem
    if not held:
        return f"No word of {text} is one that {name} could be asked for."
    kinds = {
        "holds": [w for w in held if w.gain >= HELD],
        "does not hold": [w for w in held if abs(w.gain) < HELD],
        "was told otherwise": [w for w in held if w.gain <= -HELD],
    }
    count, kept = len(held), len(kinds["holds"])
    lines = [f"Of the {count} strongest words of {text}, {name} holds {kept}."]
    if count == 1:
        lines = [f"{name} {'holds' if kept else 'does not hold'} the one strong word of {text}."]
    said = {"holds": "It holds", "does not hold": "It has let go of, or was never told"}
    said["was told otherwise"] = "It makes less likely, as where it was told otherwise since"
    for kind, words in kinds.items():
        if words:
            shown = [f"{w.word} ({up_to(w.before, w.word, 40)})" for w in words[:_MOST]]
            more = f", and {len(words) - _MOST} more" if len(words) > _MOST else ""
            lines.append(f"{said[kind]}: {', '.join(shown)}{more}.")
    return "\n".join(lines)


def comparison_words(comparison: Comparison) -> str:
    """How far apart two memories are."""
    a, b = (Path(memory.name).name for memory in (comparison.a, comparison.b))
    if not comparison.same_adapter:
        return f"{a} and {b} were written under different adapters: nothing follows from this."
    cosine = float(np.mean([layer.cosine for layer in comparison.layers]))
    steps = ((0.98, "hold the same"), (0.8, "are much alike"), (0.3, "have something in common"))
    how = next((what for least, what in steps if cosine >= least), "have little in common")
    furthest = max(comparison.layers, key=lambda layer: layer.change)
    words = (
        f"{a} and {b} {how}: the cosine of their states is {cosine:.2f} (1: the same direction, 0: "
        "unrelated)."
    )
    if not furthest.change:
        return words
    return f"{words}\nThey are furthest apart in layer {furthest.layer}."


def adapter_words(adapter: AdapterContents) -> str:
    """What an adapter does."""
    config, base = adapter.config, adapter.base_model
    what = {
        "token": "every token",
        "message_mean": "each message once",
        "sentence_mean": "each sentence once",
    }[config.memory_write_granularity]
    heads = config.num_state_heads
    states = f"{heads} states" if heads > 1 else "a state"
    *first, last = config.delta_heads
    corrected = f"{', '.join(first)} and {last}" if first else last
    model = base.get("name") or base.get("model_type") or "a model that it does not name"
    return (
        f"An adapter for {model}: it writes {what} to {states} of {config.rank} × {config.rank} in "
        f"each of {len(adapter.layers)} layers, and corrects {corrected} by what it reads there "
        f"({adapter.parameters:,} parameters)."
    )


def trace_words(trace: Trace, name: str) -> str:
    """What was written most strongly, and what of it is left at the end."""
    kind = trace.kind
    count = len(trace.turns)
    lines = [
        f"{name}: {len(trace.pieces):,} tokens in {count} {kind}{'s' * (count != 1)}, written to "
        f"{len(trace.layers)} layers."
    ]
    if trace.granularity == "token":
        lines.append(f"Written most strongly: {', '.join(_strongest(trace))}.")
    shares = {n + 1: trace.left_of(n) for n in trace.told_much()}
    if shares:
        kept = _left_text(kind, {n: share for n, share in shares.items() if share >= _KEPT})
        over = _left_text(kind, {n: share for n, share in shares.items() if share < _KEPT})
        kept += " (over 100%: what came later added to it)" * (max(shares.values()) > 1.005)
        state = "; only ".join(filter(None, (kept, over))) if kept else f"only {over}"
        lines.append(
            f"Still in the memory at the end: {state}. Whether what was told can be asked for: "
            "--probe asks a memory."
        )
    return "\n".join(lines)


def _strongest(trace: Trace, most: int = 8) -> list[str]:
    beta = trace.write.mean(axis=1)
    order = np.argsort(-beta, kind="stable")
    words = ((trace.shown[i].strip(), beta[i]) for i in order if beta[i] >= _STRONG * beta.max())
    return list(dict.fromkeys(word for word, _ in words if word))[:most]


def _left_text(kind: str, shares: Mapping[int, float]) -> str:
    """How much is left of these turns; empty: there are none."""
    if not shares:
        return ""
    low, high = (f"{max(0.0, share):.0%}" for share in (min(shares.values()), max(shares.values())))
    much = low if low == high else f"{low} to {high}"
    return f"{much} of what {kind}{'s' * (len(shares) != 1)} {_ranges(list(shares))} wrote"


def _ranges(numbers: Sequence[int]) -> str:
    """``1–3, 5``"""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and parts[-1][1] == n - 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(f"{a}" if a == b else f"{a}–{b}" for a, b in parts)
