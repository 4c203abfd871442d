"""What `allranks demo` leaves when it is interrupted; test_wheel.py runs it whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from allranks.observe import RunDir
from tests.patience import TIMEOUT_SECONDS, has_ended


@pytest.mark.thorough
def test_an_interrupted_demo_leaves_no_process(tmp_path: Path) -> None:
    demo = subprocess.Popen(
        [sys.executable, "-m", "allranks", "demo", "--dir", str(tmp_path / "demo")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        events = RunDir(tmp_path / "demo" / "run").events(1)
        _wait_until(events.exists)
        family = psutil.Process(demo.pid).children(recursive=True)
        assert len(family) >= 6  # per node: the command, torchrun's agent, the rank
        demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=TIMEOUT_SECONDS) not in (0, None)
        assert all(has_ended(process.pid) for process in family)
    finally:
        demo.kill()
        demo.wait()


def _wait_until(condition) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
