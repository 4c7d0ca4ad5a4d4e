"""Text in columns, for terminals."""

from collections.abc import Iterable, Mapping, Sequence

BAR = 24


def bar(value: float, top: float, width: int = BAR) -> str:
    """A bar as long as ``value`` is beside ``top``."""
    return "▇" * round(width * value / top) if top > 0 else ""


def signed(value: float) -> str:
    """A number with its sign and two decimals; what rounds to 0 has no sign."""
    text = f"{value:+.2f}"
    return text if float(text) else "0.00"


def one_line(text: str, length: int = 1000) -> str:
    """A text on one line of at most ``length`` characters."""
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def up_to(before: str, word: str, length: int) -> str:
    """A word and the last whole words before it, on one line of about ``length`` characters."""
    word = one_line(word, length)
    room, kept = length - len(word) - 2, list[str]()
    words = before.split()
    for earlier in reversed(words):
        room -= len(earlier) + 1
        if room < 0:
            break
        kept.insert(0, earlier)
    return " ".join(["…"] * (len(kept) < len(words)) + kept + [word])


def fields(values: Mapping[str, str | list[str] | None]) -> str:
    """Names and what stands under them, in two columns."""
    width = max(len(name) for name, value in values.items() if value)
    lines = []
    for name, value in values.items():
        items = value if isinstance(value, list) else [value] if value else []
        lines += [f"{name if i == 0 else '':<{width}}  {item}" for i, item in enumerate(items)]
    return "\n".join(lines)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns: numbers to the right, those whose name begins with < to the left."""
    names = [name.removeprefix("<") for name in columns]
    lines = [names, *rows]
    widths = [max(len(row[c]) for row in lines) for c in range(len(columns))]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if name.startswith("<") else f"{cell:>{width}}"
            for cell, width, name in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in lines
    )
