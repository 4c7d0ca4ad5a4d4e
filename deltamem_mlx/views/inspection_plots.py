"""Pictures of adapters, probes, and of two memories. Needs matplotlib: the extra ``plot``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ..inspection.adapter_contents import AdapterContents
from ..inspection.memory_contents import Comparison
from ..inspection.probe import WITHOUT, Probed
from .columns import one_line, signed
from .figures import BLUE, GREEN, GREY, ORANGE, drawn, figure, stacked, whole_numbers
from .layer_plots import bars, heatmaps, level


@drawn
def draw_comparison(comparison: Comparison) -> Figure:
    """Heat-maps of two memories under each other, and how far apart they are in every layer."""
    a, b = comparison.a, comparison.b
    names = [f"{x}: {one_line(Path(m.name).name, 32)}" for x, m in (("A", a), ("B", b))]
    picture = figure(11, 12)
    title = f"{names[0]} ({a.tokens_written:,} tokens)  and  {names[1]} ({b.tokens_written:,})"
    picture.suptitle(title, fontsize=13)
    if not comparison.same_adapter:
        picture.supxlabel(
            "They were written under different adapters: being alike or not means nothing.",
            color=ORANGE,
        )
    top, bottom = stacked(picture, [2.4, 1])
    gone = {i: a.states[i] - b.states[i] for i in a.states}
    heatmaps(top, [a.states, b.states, gone], ["A", "B", "A − B"])
    norms, cosines = bottom.subplots(1, 2)
    layers = [m.layer for m in a.layers]
    for memory, name, color, marker in zip((a, b), names, (BLUE, ORANGE), "os", strict=True):
        norms.plot(layers, [m.norm for m in memory.layers], marker=marker, ms=4, lw=1.2,
                   color=color, label=one_line(name, 30))  # fmt: skip
    norms.set(title="How much each layer holds", ylabel="norm of the state", xlabel="layer")
    norms.set_ylim(bottom=0)
    norms.legend()
    whole_numbers(norms)
    bars(cosines, layers, [d.cosine for d in comparison.layers], GREEN)
    cosines.set(title="How alike they are", ylabel="cosine similarity (1: same direction)")
    lowest = min(d.cosine for d in comparison.layers)
    cosines.set_ylim(min(0, lowest) * 1.1, 1.12)
    mean = float(np.mean([d.cosine for d in comparison.layers]))
    level(cosines, mean, f"mean {mean:.2f}")
    return picture


@drawn
def draw_adapter(adapter: AdapterContents) -> Figure:
    """How strongly an adapter corrects in every layer, and how wide its gates are at rest."""
    picture = figure(11, 4.2)
    corrected = ", ".join(adapter.config.delta_heads)
    picture.suptitle(
        f"{one_line(adapter.name, 60)}: corrects {corrected}, {adapter.parameters:,} parameters",
        fontsize=13,
    )
    norms, gates = picture.subplots(1, 2)
    layers = [layer.layer for layer in adapter.layers]
    colors = dict(zip("qkvo", (BLUE, GREY, GREEN, ORANGE), strict=True))
    for head, marker in zip(adapter.config.delta_heads, "osD^", strict=False):
        values = [layer.corrections[head] for layer in adapter.layers]
        norms.plot(
            layers, values, marker=marker, ms=4, lw=1.2, color=colors[head], label=f"Δ{head}"
        )
    norms.set(title="How strongly it corrects", xlabel="layer", ylabel="norm of the correction")
    norms.set_ylim(0, norms.get_ylim()[1] * 1.15)
    norms.legend(ncols=4, loc="upper right")
    mean, low, high = np.array([layer.write for layer in adapter.layers]).T
    spread = float(max(high) - min(low))
    within = float(max(high - low))  # of one layer: without it there is no band to see
    if within > 1e-3:
        gates.vlines(layers, low, high, color=BLUE, alpha=0.3, lw=7, label="smallest to largest")
    gates.plot(layers, mean, color=BLUE, marker="o", ms=4, lw=1.2, label="mean")
    title = "How wide its write gates are at rest"
    gates.set(title=title if spread > 1e-3 else f"{title}: all {mean[0]:.3f}")
    gates.set(xlabel="layer", ylabel="β = σ(bias)")
    room = max(0.02, spread)
    gates.set_ylim(max(0, min(low) - room / 4), min(1, max(high) + room / 2))
    if within > 1e-3:
        gates.legend(ncols=2, loc="upper right")
    for axes in (norms, gates):
        whole_numbers(axes)
    return picture


@drawn
def draw_probe(probed: Sequence[Probed], name: str) -> Figure:
    """How much the memory adds to the log-probability of every answer to every phrasing."""
    rows = [answer for one in probed for answer in one.answers]
    picture = figure(11, 1.6 + 0.42 * len(rows) + 0.3 * len(probed))
    verdict = f"it says “{one_line(probed[0].answers[0].text, 40)}”"
    without = next((a.text for a in probed[0].answers if a.source == WITHOUT), None)
    verdict += ", with and without" if without is None else f", without “{one_line(without, 40)}”"
    title = f"What the memory {Path(name).name} adds to each answer"
    picture.suptitle(f"{title}:\n{verdict}", fontsize=13)
    axes = picture.subplots()
    y, labels, places = 0.0, [], []
    # At least one nat to each side, so that nothing looks like much which is not.
    reach = max(1.0, *(abs(answer.gain) for answer in rows))
    for phrasing in probed:
        axes.text(0, y - 0.1, f"“{one_line(phrasing.phrasing, 80)}”", weight="bold", va="center",
                  ha="left", fontsize=9.5, backgroundcolor="white",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        for answer in phrasing.answers:
            y += 1
            axes.barh(y, answer.gain, height=0.62, color=BLUE if answer.gain > 0 else ORANGE)
            axes.text(answer.gain + np.copysign(reach * 0.015, answer.gain), y,
                      signed(answer.gain), va="center", fontsize=9,
                      ha="left" if answer.gain >= 0 else "right")  # fmt: skip
            labels.append(f"{one_line(answer.in_place, 44) or '(nothing)'}\n{answer.source}")
            places.append(y)
        y += 1.3
    axes.axvline(0, color="black", lw=0.8)
    axes.spines.left.set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.set_yticks(places, labels, fontsize=9)
    axes.set_ylim(y - 0.5, -0.8)
    axes.set_xlim(-reach * 1.15, reach * 1.15)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("← less likely with the memory      log-probability added, in nats (1 nat: "
                    "2.7 times)      more likely →")  # fmt: skip
    return picture
