"""Long lines on a terminal."""

import io
import os
import random
import select

import pytest

from allranks.observe import Progress, say
from allranks.observe.folding import folded
from tests.on_terminal import open_terminal


@pytest.fixture
def terminal(monkeypatch):
    """`terminal(columns)` gives a stream into a real terminal; what it was sent is read with `.sent()`."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "LINES", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    opened = []

    def make(columns):
        ours, theirs = open_terminal(columns)
        stream = os.fdopen(theirs, "w", encoding="utf-8")
        opened.append((ours, stream))
        stream.sent = lambda: _all(ours)
        return stream

    yield make
    for ours, stream in opened:
        stream.close()
        os.close(ours)


def _all(ours):
    sent = b""
    while select.select([ours], [], [], 0)[0]:
        sent += os.read(ours, 1 << 16)
    return sent.decode()


def test_no_line_is_longer_than_the_width_but_for_a_word_that_is():
    random.seed(0)
    for _ in range(500):
        words = ["w" * random.randint(1, 30) for _ in range(random.randint(1, 40))]
        width = random.choice([30, 60, 80, 140])
        text = " " * random.randint(0, 6) + " ".join(words)
        lines = folded(text, width).split("\n")
        assert " ".join(folded(text, width).split()) == " ".join(words), "nothing is lost, added or cut"
        assert all(len(line) <= width or len(line.split()[-1]) > width - 8 for line in lines)  # 8: the widest indent
        assert len(text) > width or lines == [text]


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("error: one two three four", ["error: one two", "  three four"]),
        ("  indented one two three", ["  indented one", "    two three"]),
        ("strategy:  one two six", ["strategy:  one", "           two", "           six"]),
        ("see /a/very/long/path/that/is/one/word now", ["see /a/very/long/path/that/is/one/word", "  now"]),
        ("do this: `allranks train c.yaml` then", ["do this: `allranks train c.yaml`", "  then"]),
        ("do what this says: `a b c`", ["do what this", "  says: `a b c`"]),
        ("  $ allranks train c.yaml --max-steps 2", ["  $ allranks train c.yaml --max-steps 2"]),
        ("  try it  allranks chat run --compare base", ["  try it  allranks chat run --compare base"]),
        ("command:  A=1 /b/python3 -m x y", ["command:  A=1 /b/python3 -m x y"]),
        ("one two three four\nfive", ["one two three", "  four", "five"]),
    ],
)
def test_where_lines_go_on(line, lines):
    assert folded(line, 15) == "\n".join(lines)


def test_what_is_said_to_a_terminal_is_folded_and_to_a_file_as_it_is(terminal, tmp_path):
    line = "note: " + "word " * 30
    stream = terminal(40)
    say(line, file=stream)
    sent = stream.sent().split("\r\n")
    assert len(sent) > 3 and max(map(len, sent)) <= 40
    with (tmp_path / "file").open("w") as file:
        say(line, file=file)
    assert (tmp_path / "file").read_text() == f"{line}\n"


def drawn(stream):
    """The live line as it was drawn last."""
    return stream.sent().replace("\r\n", "\n").split("\x1b[2K")[-1].split("\n")[0]


@pytest.mark.parametrize("columns", [40, 60, 80, 100, 140])
def test_the_live_line_keeps_step_and_time_left_whatever_the_width(terminal, columns, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    stream = terminal(columns)
    progress = Progress(20_000, full_speed=1e5, file=stream)
    progress.update(
        12_345, loss=1.23, learning_rate=2e-5, tokens=45_678, seconds=1.0, memory_bytes=80 << 30, router_loss=0.01
    )
    line = drawn(stream)
    assert "\x1b[3" not in line and "m" not in line.partition("━")[0], "no colours where they are not wanted"
    assert line.startswith("step 12345/20000 ━") and "loss 1.2300" in line and "…" not in line
    assert ("ETA" in line) == (columns >= 60)
    assert ("tokens/s" in line) == (columns >= 80)
    assert ("router" in line) == (columns >= 140)
    assert len(line) < columns
    progress.close()


def test_a_terminal_that_cannot_redraw_gets_plain_lines(terminal, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    stream = terminal(80)
    with Progress(3, file=stream) as progress:
        for step in (1, 2, 3):
            progress.update(step, loss=0.5, seconds=1.0)
    assert [line.split("  ")[0] for line in stream.sent().split("\r\n")] == ["step 1/3", "step 2/3", "step 3/3", ""]


def test_a_file_gets_plain_lines_whatever_the_environment_says_of_colours(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = io.StringIO()
    with Progress(2, file=file) as progress:
        progress.update(1, loss=0.5, seconds=1.0)
        progress.note("saved")
    assert file.getvalue() == "step 1/2  loss 0.5000  ETA 0:00:01\nsaved\n"
