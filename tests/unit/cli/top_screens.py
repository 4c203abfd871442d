"""What `allranks top` puts on real terminals, as pictures for docs/top.md: `python -m tests.unit.cli.top_screens`.

A terminal is recorded here as far as `top` uses one: each screen is written from its top, line by line.
"""

import contextlib
import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from xml.sax.saxutils import escape

from tests.unit.live.simulated_runs import simulated

PICTURES = Path(__file__).parents[3] / "docs" / "pictures"
# Ranks, columns, rows of the terminal, and who is marked.
SCREENS: dict[str, tuple[int, int, int, dict[str, int]]] = {
    f"top-{ranks}-ranks-{columns}-columns": (ranks, columns, rows, marked)
    for ranks, rows, marked in ((3, 24, {}), (16, 40, {"slow": 5}), (512, 24, {"slow": 77, "stopped": 300}))
    for columns in (80, 140)
}
_HOME, _END_OF_LINE, _REST = b"\x1b[H", b"\x1b[K", b"\x1b[J"
_FONT = "ui-monospace, Menlo, Consolas, monospace"
_CELL, _LINE, _MARGIN = 8.4, 18, 14  # pixels of a font of 14


def screen(num_ranks: int, columns: int, rows: int, marked: dict[str, int]) -> list[str]:
    """The lines of the first screen that `top` shows of a simulated run."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    written = b""
    with tempfile.TemporaryDirectory() as run:
        Path(run, "live.json").write_text(json.dumps(simulated(num_ranks, **marked).to_message()))
        command = [sys.executable, "-m", "allranks", "top", run]
        env = {**os.environ, "TERM": "xterm"}
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as top:
            os.close(theirs)
            with contextlib.suppress(OSError):  # it has ended, and with it the terminal
                while _REST not in written:
                    written += os.read(ours, 65536)
            top.terminate()
            while top.poll() is None:
                with contextlib.suppress(OSError):
                    os.read(ours, 65536)
    os.close(ours)
    shown, found, _ = written.partition(_HOME)[2].partition(_REST)
    assert found, written.decode(errors="replace")
    return shown.replace(_END_OF_LINE, b"").replace(b"\r", b"").decode().removesuffix("\n").split("\n")


def svg(name: str, lines: list[str]) -> str:
    """The screen as a picture: its characters, each in its cell, on the background of the page it is shown on."""
    num_ranks, columns, _, _ = SCREENS[name]
    width, height = columns * _CELL + 2 * _MARGIN, len(lines) * _LINE + 2 * _MARGIN
    texts = [
        f'  <text x="{_MARGIN}" y="{_MARGIN + _LINE * number - 5}" textLength="{len(line) * _CELL:.1f}" '
        f'xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines, 1)
        if line
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img"'
    return "\n".join(
        [
            f'{head} aria-labelledby="title desc" font-family="{_FONT}" font-size="14">',
            f'  <title id="title">allranks top: {num_ranks} ranks at {columns} columns</title>',
            '  <desc id="desc">The screen of a terminal; what the columns mean is told on the page Live.</desc>',
            "  <style>",
            "    .screen { fill: #f6f8fa; stroke: #d0d7de } text { fill: #1f2328 }",
            "    @media (prefers-color-scheme: dark) {",
            "      .screen { fill: #161b22; stroke: #30363d } text { fill: #e6edf3 }",
            "    }",
            "  </style>",
            f'  <rect class="screen" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1}" rx="6"/>',
            *texts,
            "</svg>",
            "",
        ]
    )


if __name__ == "__main__":
    for each, wanted in SCREENS.items():
        (PICTURES / f"{each}.svg").write_text(svg(each, screen(*wanted)), encoding="utf-8")
