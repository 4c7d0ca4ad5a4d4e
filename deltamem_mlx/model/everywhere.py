"""Where a memory can be kept in a model that lies in several processes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import mlx.nn as nn

from .found import Found, Site, find_sites
from .shares import first_row, group_of, share_of
from .spread import Spread, spread_of

Rows = dict[str, bytes]


class LayersThere(NamedTuple):
    """What a process tells the others of its layers, which are counted through the whole model.

    Attributes:
        found (Found): Its sites, without the attentions themselves.
        rows (list[Rows]): For each site and head whose rows are dealt out, which the first is.
    """

    found: Found
    rows: list[Rows]


def find_everywhere(model: nn.Module) -> tuple[Found, Spread]:
    """``find_sites`` in all processes that have a part of the model, and where it lies.

    Layers are those of the whole model, and all processes find the same.

    Raises:
        ValueError: If a token could not be run through the plain model in one of them.
    """
    spread = spread_of(model)
    if spread.ranks.alone:
        return find_sites(model), spread
    own: list[Found] = []

    def look() -> LayersThere:
        own.append(_counted_through(find_sites(model), spread))
        return _without_attentions(own[0])

    everyone = spread.ranks.agree(look)
    if spread.pipelined:
        return _joined(own[0], [there.found for there in everyone]), spread
    sites = [_with_shares(site, i, everyone) for i, site in enumerate(own[0].sites)]
    return own[0]._replace(sites=sites), spread


def _counted_through(found: Found, spread: Spread) -> Found:
    """The same with layers of the whole model."""
    first, rank = spread.first, spread.ranks.rank if spread.pipelined else 0
    sites = [
        replace(s, block=s.block + first, layer=s.layer + first, rank=rank) for s in found.sites
    ]
    return found._replace(
        sites=sites, reasons={block + first: why for block, why in found.reasons.items()}
    )


def _without_attentions(found: Found) -> LayersThere:
    rows = []
    for site in found.sites:
        if site.attention is None:
            continue
        projections = {
            h: site.attention[site.projections.attribute(h)]
            for h in "qkv"
            if h in site.projections.heads
        }
        rows.append({h: first_row(p) for h, p in projections.items() if group_of(p) is not None})
    sites = [replace(site, attention=None) for site in found.sites]
    return LayersThere(found._replace(sites=sites), rows)


def _joined(own: Found, everyone: Sequence[Found]) -> Found:
    """What all processes of a pipeline have, this one's own with its attentions."""
    mine = {(site.block, site.name): site for site in own.sites}
    sites = [mine.get((s.block, s.name)) or s for found in everyone for s in found.sites]
    reasons = {block: why for found in everyone for block, why in found.reasons.items()}
    return Found(
        sorted(sites, key=lambda site: site.layer), dict(sorted(reasons.items())), own.entries
    )


def _with_shares(site: Site, index: int, everyone: Sequence[LayersThere]) -> Site:
    """The site with what this process has of the rows of its projections."""
    assert site.attention is not None
    shares = []
    for head in everyone[0].rows[index]:
        rows = [there.rows[index][head] for there in everyone]
        share = share_of(site.attention[site.projections.attribute(head)], rows)
        if share is not None:
            shares.append((head, share))
    return replace(site, projections=replace(site.projections, shares=tuple(shares)))
