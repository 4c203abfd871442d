"""The progress of a run on the terminal of rank 0: one live line, or plain lines when nobody is looking."""

import sys
import time
from collections import deque
from typing import Any, TextIO

from allranks.observe.enduring import Enduring
from allranks.observe.folding import for_terminal, terminal_width

# A live line redrawn twice a second is fresh to the eye and costs less than 0.5 % of a core.
REDRAW_SECONDS = 0.5
# Steps that the rates shown are of: their tokens over their seconds. (A mean of the steps' own rates would go on
# showing the speed of the quick ones when a few slow ones take nearly all the time.)
WINDOW = 10
# Columns of the bar: it takes what the numbers leave.
_WIDEST_BAR = 20
_NARROWEST_BAR = 5


class Progress:
    """Shows `step`, loss, learning rate, tokens/s, memory, MFU and the time left.

    On a terminal: one line that is redrawn in place, with as much as its width has room for. Otherwise one plain line
    every `logging_steps` steps. Once the terminal has gone, nothing. Use as a context manager, or call `close`.

    `total_steps` and `start_step` count optimizer steps; `start_step` is the last one done before (a resumed run's time
    left is computed from its own speed). `full_speed`: tokens per second of all ranks at their devices' peak, for MFU.
    """

    def __init__(
        self,
        total_steps: int,
        *,
        start_step: int = 0,
        logging_steps: int = 1,
        full_speed: float | None = None,
        file: TextIO | None = None,
    ) -> None:
        from rich.console import Console  # 60 ms: not before somebody looks

        self.total_steps = total_steps
        self.logging_steps = max(1, logging_steps)
        self._out = Enduring(sys.stdout if file is None else file)
        self.console = Console(file=self._out, highlight=False)  # type: ignore[arg-type]
        self._step = start_step
        self.full_speed = full_speed
        self._window: deque[tuple[int, float, int]] = deque(maxlen=WINDOW)  # steps, seconds, tokens
        self._drawn = 0.0
        self._live: Any = None
        # Rich takes a file for a terminal where FORCE_COLOR is set, as many CIs do; a dumb terminal cannot redraw.
        if not self._out.gone and self._out.isatty() and not self.console.is_dumb_terminal:
            self._live = _live_line(self.console, total_steps, start_step)

    def update(
        self,
        step: int,
        *,
        loss: float | None = None,
        learning_rate: float | None = None,
        tokens: int | None = None,
        seconds: float,
        memory_bytes: int | None = None,
        router_loss: float | None = None,
    ) -> None:
        """Report that optimizer step `step` is done.

        `tokens` (of all ranks) and `seconds` are those since the last update; `memory_bytes` is the peak of this rank.
        Costs microseconds unless a line is due.
        """
        self._window.append((max(1, step - self._step), seconds, tokens or 0))
        self._step = step
        last = step >= self.total_steps
        if self._out.gone:
            return
        if self._live is not None:
            now = time.monotonic()
            if not last and now - self._drawn < REDRAW_SECONDS:
                return
            self._drawn = now
        elif not last and step % self.logging_steps:
            return
        parts = self._parts(loss, router_loss, learning_rate, memory_bytes)
        count = f"step {step}/{self.total_steps}"
        if self._live is not None:
            # Rich would look at standard input first; windows change their size.
            self.console.width = terminal_width(self._out.stream) or self.console.width
            # A last column stays free: some terminals go on to the next line when it is written.
            text, bar_width = _fitting(parts, self.console.width - len(count) - 1)
            self._live.columns[1].bar_width = bar_width
            self._live.update(0, completed=step, count=count, text=text)
            self._live.refresh()
        else:
            self.console.print(f"{count}  {'  '.join(parts.values())}", soft_wrap=True, markup=False)

    def note(self, text: str) -> None:
        """Print a line of its own above the live line."""
        self.console.print(for_terminal(text, self._out.stream), soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the last state of the line on the screen."""
        if self._live is not None:
            self._live.refresh()
            self._live.stop()
            self._live = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _parts(
        self, loss: float | None, router_loss: float | None, learning_rate: float | None, memory_bytes: int | None
    ) -> dict[str, str]:
        steps, seconds, tokens = (sum(column) for column in zip(*self._window, strict=True))
        parts = {}
        if loss is not None:
            parts["loss"] = f"loss {loss:.4f}"
        if router_loss is not None:
            parts["router"] = f"router {router_loss:.3f}"
        if learning_rate is not None:
            parts["lr"] = f"lr {learning_rate:.2e}"
        if tokens and seconds > 0:
            parts["rate"] = f"{short_count(tokens / seconds)} tokens/s"
            if self.full_speed:
                parts["MFU"] = f"MFU {tokens / seconds / self.full_speed:.0%}"
        if memory_bytes is not None:
            parts["memory"] = f"{memory_bytes / 2**30:.1f} GiB"
        parts["ETA"] = f"ETA {clock((self.total_steps - self._step) * seconds / steps)}"
        return parts


def _fitting(parts: dict[str, str], room: int) -> tuple[str, int]:
    """What of `parts` fits into `room` columns beside a bar, and how wide that may be; left out is what tells least."""
    for least in ("router", "lr", "memory", "MFU", "rate", "ETA", "loss"):
        text = "  ".join(parts.values())
        left = room - len(text) - 2  # the spaces around the bar
        if left >= _NARROWEST_BAR:
            return text, min(left, _WIDEST_BAR)
        parts = {name: part for name, part in parts.items() if name != least}
    return "", max(1, min(room - 2, _WIDEST_BAR))


def _live_line(console: Any, total_steps: int, start_step: int) -> Any:
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress

    # No refresh thread: the loop redraws when it passes by, so the display never competes with it.
    live = RichProgress(
        TextColumn("{task.fields[count]}"),
        BarColumn(bar_width=_WIDEST_BAR),
        TextColumn("{task.fields[text]}", markup=False),
        console=console,
        auto_refresh=False,
    )
    live.add_task("train", total=total_steps, completed=start_step, count=f"step {start_step}/{total_steps}", text="")
    live.start()
    return live


def short_count(value: float) -> str:
    """A number in few characters: 12.3k, 4.5M."""
    for size, unit in ((1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if unit == 'k' else size):.1f}{unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
