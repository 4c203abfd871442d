"""The picture of a loss in a terminal: dots of braille, and a line where the topology changed."""

import math

# The eight dots of a braille cell (Unicode block U+2800): bit of column 0, then of column 1, from top to bottom.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
_LABEL_WIDTH = 7


def loss_picture(
    losses: dict[int, float],
    change: int | None = None,
    *,
    before: str = "",
    after: str = "",
    width: int = 72,
    height: int = 12,
    ascii_only: bool = False,
) -> str:
    """The losses by step, drawn in `height` lines of at most `width` characters, with an axis and a legend.

    `change` is the first step on another topology: a vertical line stands where it begins, and `before` and `after`
    are written above its two sides. Losses that are not finite are left out; fewer than two finite ones give an empty
    string. `ascii_only` is for terminals that have no Unicode.
    """
    points = {step: loss for step, loss in losses.items() if math.isfinite(loss)}
    if len(points) < 2:
        return ""
    columns = max(16, width - _LABEL_WIDTH - 2)
    first, last = min(points), max(points)
    low, high = min(points.values()), max(points.values())
    dots_across, dots_down = (1, 1) if ascii_only else (2, 4)

    def dot_across(step: float) -> int:
        return round((step - first) / (last - first) * (columns * dots_across - 1))

    cells = [[0] * columns for _ in range(height)]
    for step, loss in points.items():
        across = dot_across(step)
        down = round((high - loss) / (high - low or 1.0) * (height * dots_down - 1))
        cells[down // dots_down][across // dots_across] |= 1 if ascii_only else _DOTS[across % 2][down % 4]

    bar = None if change is None else dot_across(min(max(change - 0.5, first), last)) // dots_across
    margin = " " * (_LABEL_WIDTH + 2)
    lines = [] if bar is None else [(margin + f"{before} ".rjust(bar) + f"{_bar(ascii_only)} {after}").rstrip()]
    for row, line in enumerate(cells):
        label = f"{high - (high - low) * row / max(1, height - 1):.3f}" if row % 3 == 0 or row == height - 1 else ""
        text = "".join(_character(cell, index == bar, ascii_only) for index, cell in enumerate(line))
        lines.append(f"{label:>{_LABEL_WIDTH}} {'|' if ascii_only else '┤' if label else '│'}{text}".rstrip())
    lines.append(" " * (_LABEL_WIDTH + 1) + ("+" + "-" * columns if ascii_only else "└" + "─" * columns))
    end = f"step {last}"
    lines.append(margin + f"step {first}".ljust(columns - len(end)) + end)
    return "\n".join(lines)


def _bar(ascii_only: bool) -> str:
    return "|" if ascii_only else "╎"


def _character(cell: int, on_bar: bool, ascii_only: bool) -> str:
    if cell:
        return "*" if ascii_only else chr(0x2800 + cell)
    return _bar(ascii_only) if on_bar else " "
