import io

from allranks.observe import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_every_logging_steps_and_at_the_end():
    out = io.StringIO()
    with Progress(5, logging_steps=2, full_speed=500.0, file=out) as progress:
        for step in range(1, 6):
            progress.update(step, loss=1.5, learning_rate=2e-5, tokens=100, seconds=0.5, memory_bytes=2**30)
    lines = out.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == ["2/5", "4/5", "5/5"]
    assert lines[0] == "step 2/5  loss 1.5000  lr 2.00e-05  200 tokens/s  MFU 40%  1.0 GiB  ETA 0:00:02"


def test_time_left_of_a_resumed_run_comes_from_its_own_steps():
    out = io.StringIO()
    Progress(1000, start_step=990, logging_steps=5, file=out).update(995, loss=1.0, seconds=50.0)
    assert "ETA 0:00:50" in out.getvalue()


def test_the_rate_is_tokens_over_time_of_the_last_ten_steps():
    """A link that becomes slow: the mean of the steps' own rates would go on showing that of the quick ones."""
    out = io.StringIO()
    progress = Progress(100, logging_steps=1, file=out)
    seconds = [0.2] * 20 + [22.0] * 3 + [20.0] * 10
    for step, each in enumerate(seconds, start=1):
        progress.update(step, tokens=400, seconds=each)
    shown = [line.split()[2] for line in out.getvalue().splitlines()]
    assert shown[19] == "2000"
    assert shown[20] == f"{4000 / (9 * 0.2 + 22):.0f}" == "168"
    assert shown[22] == f"{4000 / (7 * 0.2 + 66):.0f}" == "59"
    assert shown[32] == "20"
    assert out.getvalue().splitlines()[32].endswith("ETA 0:22:20")  # 67 steps of 20 s


def test_a_terminal_gets_one_line_that_ends_with_the_last_step(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    out = Terminal()
    with Progress(200, file=out) as progress:
        for step in range(1, 201):
            progress.update(step, loss=0.25, tokens=10, seconds=0.01)
        progress.note("saved")
    text = out.getvalue()
    assert "200/200" in text and "loss 0.2500" in text and "saved" in text
    assert text.count("loss") < 50, "redrawing at every step slows the loop"


def test_a_loss_that_is_not_a_number_is_shown():
    out = io.StringIO()
    Progress(1, file=out).update(1, loss=float("nan"), seconds=1.0)
    assert "loss nan" in out.getvalue()
