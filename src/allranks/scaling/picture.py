"""The picture of a scaling in a terminal: a bar a size, and where it would end, were it ideal."""

from __future__ import annotations

from collections.abc import Sequence

from allranks.scaling.efficiency import Scaled

_NARROWEST = 10


def bars(sizes: Sequence[Scaled], *, width: int = 72, ascii_only: bool = False) -> str:
    """Tokens a second of each size, in lines of at most `width` characters; "" for fewer than two sizes."""
    if len(sizes) < 2:
        return ""
    full, half, ideal = ("#", "", "|") if ascii_only else ("█", "▌", "│")
    labels = [str(one.measured.nodes) for one in sizes]
    rates = [one.measured.tokens_per_second for one in sizes]
    figures = [f"{rate:,.0f}" for rate in rates]
    ideals = [rate / one.efficiency if one.efficiency else rate for rate, one in zip(rates, sizes, strict=True)]
    left, right = max(map(len, labels)), max(map(len, figures))
    columns = max(_NARROWEST, width - left - right - 5)
    per_column = max(*ideals, *rates) / (columns - 1)
    lines = [f"tokens/s by nodes; {ideal} is where it would be without loss"]
    for label, rate, figure, best in zip(labels, rates, figures, ideals, strict=True):
        filled = rate / per_column
        bar = full * int(filled) + (half if filled % 1 >= 0.5 else "")
        place = round(best / per_column)
        if place > len(bar):
            bar = bar.ljust(place) + ideal
        lines.append(f"{label:>{left}}  {bar.ljust(columns)}  {figure:>{right}}")
    return "\n".join(lines)
