"""Lists of items, a page at a time."""

from collections.abc import Mapping, Sequence

from ..errors import refuse
from ..kept.items import Item


def page_of(items: Sequence[Item], query: Mapping[str, str]) -> dict[str, object]:
    """The part of a list that the query of an address asks for.

    Args:
        items (Sequence[Item]): All, the oldest first.
        query (Mapping[str, str]): ``limit`` (1 to 100, usually 20), ``order`` (``asc`` or ``desc``,
          usually ``desc``) and ``after`` (an item's id).

    Raises:
        ApiError: If one of these is something else.
    """
    limit, order = query.get("limit", "20"), query.get("order", "desc")
    if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= 100):
        refuse("limit", "a number from 1 to 100")
    if order not in ("asc", "desc"):
        refuse("order", '"asc" or "desc"')
    found = list(items) if order == "asc" else list(items)[::-1]
    if "after" in query:
        places = [i for i, item in enumerate(found) if item["id"] == query["after"]]
        if not places:
            refuse("after", "the id of an item in this list")
        found = found[places[0] + 1 :]
    page = found[: int(limit)]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(found) > len(page),
    }
