"""Which attentions of a model get a memory, by what an adapter's config wants."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import mlx.nn as nn

from ..config import DeltaMemConfig
from .everywhere import find_everywhere
from .found import Found, Site, takes_cache
from .projections import OUTPUT, PACKED
from .spread import Spread


class Choice(NamedTuple):
    """Where a memory goes.

    Args:
        sites (list[Site]): The attentions that get one.
        note (str): One line on attentions that could keep one and get none; empty: there are none.
        spread (Spread): Which processes have them.
    """

    sites: list[Site]
    note: str
    spread: Spread


def choose(model: nn.Module, config: DeltaMemConfig) -> Choice:
    """The attentions that get a memory, in order of the layers, and where the model lies.

    Under mlx's distributed engine it is the same in all processes that have a part of the model,
    and all of them call it.

    Raises:
        ValueError: If there is none, or none where the config wants one; every reason is listed.
    """
    found, spread = find_everywhere(model)
    named = [_named(found, block, config) for block in range(spread.layers)]
    most = max(1, *map(len, named))
    count = len(named) * most
    outside = [i for i in config.target_layers if i >= count]
    if outside:
        raise ValueError(f"target_layers {outside}: the model has layers 0 to {count - 1}.")
    wanted = [
        replace(site, layer=block * most + i)
        for block, here in enumerate(named)
        for i, site in enumerate(here)
        if not config.target_layers or block * most + i in config.target_layers
    ]
    able = [s for s in wanted if set(config.delta_heads) <= set(s.projections.heads)]
    left_out = _by_reason([*found.reasons.items(), *_lacking(wanted, config)])
    here = [site for site in able if site.attention is not None]
    problems = list(_problems(found, wanted, config)) + _gaps(found, here)
    if problems or not able:
        raise ValueError(_refusal(model, problems or left_out))
    layers = spans(site.layer for site in able)
    note = f"A memory in layers {layers}: {'; '.join(left_out)}." if left_out else ""
    return Choice(able, note, replace(spread, memories=_dealt_out(able, spread)))


def _dealt_out(sites: list[Site], spread: Spread) -> tuple[tuple[int, ...], ...]:
    """The layers with a memory in each process."""
    return tuple(
        tuple(site.layer for site in sites if not spread.pipelined or site.rank == rank)
        for rank in range(spread.ranks.size)
    )


def _named(found: Found, block: int, config: DeltaMemConfig) -> list[Site]:
    """The attentions of a layer that the config means."""
    here = [site for site in found.sites if site.block == block]
    return [s for s in here if {s.module, s.name} & set(config.target_modules)] or here


def _problems(found: Found, wanted: list[Site], config: DeltaMemConfig) -> Iterator[str]:
    """What stands against the config's wishes."""
    for block in sorted({site.block for site in wanted}):
        here = [site for site in wanted if site.block == block]
        if len({site.module for site in here}) > 1 and not any(
            {s.module, s.name} & set(config.target_modules) for s in here
        ):
            names = ", ".join(site.name for site in here)
            yield f"layer {block} has several attentions ({names}): name one in target_modules"
    if config.target_layers:
        none = set(config.target_layers) - {site.layer for site in wanted}
        reasons = [(i, found.reasons.get(i, "have no attention with a KV cache")) for i in none]
        yield from _by_reason([*reasons, *_lacking(wanted, config)])


def _lacking(wanted: list[Site], config: DeltaMemConfig) -> Iterator[tuple[int, str]]:
    """Layers where the heads that the config corrects are not all there to be corrected."""
    for site in wanted:
        missing = [h for h in config.delta_heads if h not in site.projections.heads]
        if missing:
            yield (
                site.layer,
                f"have no {' and '.join(missing)} projection of their own; name q and o alone in "
                "delta_heads to correct those there",
            )


def _by_reason(reasons: Iterable[tuple[int, str]]) -> list[str]:
    """A line for each reason, with the layers that it holds for."""
    layers: dict[str, list[int]] = {}
    for layer, reason in reasons:
        layers.setdefault(reason, []).append(layer)
    return [f"layers {spans(here)} {reason}" for reason, here in layers.items()]


def _gaps(found: Found, able: list[Site]) -> list[str]:
    """Layers between others whose memory has an entry of its own at the end of the prompt cache."""
    added = {s.cache_path[0]: s.layer for s in able if s.cache_path[0] >= found.entries}
    missing = set(range(found.entries, max(added, default=0))) - added.keys()
    if not missing:
        return []
    return [
        f"layers {spans(set(added.values()))} use the keys and values of other layers; a memory "
        f"there needs one in layers {spans(missing)} as well"
    ]


def spans(layers: Iterable[int]) -> str:
    """Layer numbers as ``0 to 4, 6``."""
    ordered, parts = sorted(layers), []
    while ordered:
        n = next((i for i, x in enumerate(ordered) if x != ordered[0] + i), len(ordered))
        parts.append(str(ordered[0]) if n == 1 else f"{ordered[0]} to {ordered[n - 1]}")
        ordered = ordered[n:]
    return ", ".join(parts)


def _refusal(model: nn.Module, problems: list[str]) -> str:
    name = getattr(model, "model_type", type(model).__name__)
    if not problems:
        classes = sorted(
            {
                f"{path} ({type(m).__name__})"
                for layer in model.layers
                for path, m in layer.named_modules()
                if path and takes_cache(m)
            }
        )
        problems = [
            "looked for an attention with q_proj, k_proj, v_proj, or q_b_proj, or one of "
            f"{', '.join(PACKED)}, an output projection ({', '.join(OUTPUT)}) and a KV cache; "
            f"found {', '.join(classes) or 'no attention'}"
        ]
    return f"Cannot attach a memory to {name!r}: " + "; ".join(dict.fromkeys(problems)) + "."
