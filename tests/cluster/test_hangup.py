"""A terminal that goes away, and signals while data is prepared: nothing is lost, and nobody sees a traceback."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time

import psutil
import pytest
import yaml

from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from tests.cluster.conftest import ENVIRONMENT
from tests.cluster.test_launch import ENDLESS, finish, wait_for_steps
from tests.patience import TIMEOUT_SECONDS


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_closing_the_terminal_saves_and_exits_75(base_config, tmp_path, ranks):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**base_config, **ENDLESS, "output_dir": str(tmp_path / "run")}))
    ours, theirs = pty.openpty()
    launcher = subprocess.Popen(
        [sys.executable, "-m", "allranks", "train", str(path), "--nproc-per-node", str(ranks)],
        env=ENVIRONMENT | {"TERM": "xterm"},
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # As a login shell has it: when the terminal closes, the kernel sends SIGHUP.
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    shown = bytearray()
    window = threading.Thread(target=_read_until_closed, args=(ours, shown, closed := threading.Event()))
    window.start()
    run = RunDir(tmp_path / "run")
    try:
        wait_for_steps(run, launcher, ranks=ranks)
        closed.set()
        window.join(TIMEOUT_SECONDS)
        os.close(ours)
        assert launcher.wait(TIMEOUT_SECONDS) == 75, shown.decode()
    finally:
        launcher.kill()
    last = max(event.step for event in read_events(run.events(0)) if isinstance(event, StepEvent))
    assert (run.checkpoint(last) / "COMPLETE").exists()
    for log in run.path.glob("logs/**/*.log"):
        assert "Traceback" not in log.read_text(), log.read_text()


def _read_until_closed(terminal: int, shown: bytearray, closed: threading.Event) -> None:
    os.set_blocking(terminal, False)
    while not closed.wait(0.02):
        try:
            shown += os.read(terminal, 65536)
        except BlockingIOError:
            continue


@pytest.mark.parametrize(
    ("sent", "code", "ranks"),
    [
        (signal.SIGTERM, 75, 2),
        (signal.SIGINT, 130, 1),
        pytest.param(signal.SIGUSR1, 75, 1, marks=pytest.mark.thorough),
        pytest.param(signal.SIGHUP, 75, 1, marks=pytest.mark.thorough),
    ],
)
def test_a_signal_while_data_is_prepared_ends_cleanly(start, tiny, tmp_path, sent, code, ranks):
    # Enough for some seconds of work, of which only the beginning is done.
    (tmp_path / "much.jsonl").write_text(tiny.data.read_text() * 200)
    prepared = tmp_path / "prepared"
    launcher = start(
        "--nproc-per-node",
        str(ranks),
        datasets=[{"path": str(tmp_path / "much.jsonl"), "type": "chat_template"}],
        dataset_prepared_path=str(prepared),
        dataset_num_proc=1,
    )
    for line in launcher.stdout:
        if "tokenizing" in line:
            break
    launcher.send_signal(sent)
    (output,) = finish(launcher)
    assert launcher.returncode == code, output
    assert f"{sent.name}: stopped before the first step; nothing was lost" in output
    assert "Traceback" not in output
    assert not list(prepared.glob("**/manifest.json")) and not list(prepared.glob(".*building*"))


def test_ctrl_c_reaches_the_processes_that_prepare_data_too(base_config, tiny, tmp_path):
    (tmp_path / "much.jsonl").write_text(tiny.data.read_text() * 200)
    keys = {"datasets": [{"path": str(tmp_path / "much.jsonl"), "type": "chat_template"}], "dataset_num_proc": 2}
    keys |= {"dataset_prepared_path": str(tmp_path / "prepared"), "output_dir": str(tmp_path / "run")}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**base_config, **keys}))
    launcher = subprocess.Popen(
        [sys.executable, "-m", "allranks", "train", str(path)],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    while len(psutil.Process(launcher.pid).children()) < 2:
        assert launcher.poll() is None
        time.sleep(0.01)
    workers = psutil.Process(launcher.pid).children()
    os.killpg(launcher.pid, signal.SIGINT)  # as the terminal does
    (output,) = finish(launcher)
    assert launcher.returncode == 130, output
    assert "nothing was lost" in output and "Traceback" not in output and "Error" not in output
    assert not psutil.wait_procs(workers, timeout=TIMEOUT_SECONDS)[1]
