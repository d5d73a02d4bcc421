"""Column names are data: make any text safe and short enough to draw and to read."""

from collections.abc import Sequence
from functools import lru_cache

PLAIN = "\N{REPLACEMENT CHARACTER}"


def readable(name: str, limit: int = 60) -> str:
    """``name`` on one line, without control characters, shortened in its middle.

    Example:
        >>> readable("two\\nlines\\x00")
        'two lines�'
        >>> readable("a" * 40, limit=9)
        'aaaa…aaaa'
    """
    line = " ".join(str(name).split())
    line = "".join(letter if letter.isprintable() else PLAIN for letter in line) or "(no name)"
    if len(line) <= limit:
        return line
    head = (limit - 1) // 2 + (limit - 1) % 2
    return line[:head] + "…" + line[len(line) - (limit - 1 - head) :]


def labels(names: Sequence[str], limit: int = 22) -> list[str]:
    """One distinct label per column for figures.

    A name that the font of the figures cannot draw becomes ``column 3``, and two names that look
    alike once shortened get their position appended.

    Example:
        >>> labels(["mass", "温度"])
        ['mass', 'column 2']
    """
    drawn = drawable()
    result = []
    for position, name in enumerate(names, start=1):
        label = readable(name, limit)
        if any(ord(letter) not in drawn for letter in label if letter != PLAIN):
            label = f"column {position}"
        result.append(label)
    return [
        f"{label} ({position})" if result.count(label) > 1 else label
        for position, label in enumerate(result, start=1)
    ]


@lru_cache(maxsize=1)
def drawable() -> frozenset[int]:
    """The code points that the font of the figures has a glyph for."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())
