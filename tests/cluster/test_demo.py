"""`allranks demo`, whole, at a smaller size; and what it leaves when it is interrupted."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
from rich.console import Console

from allranks.demo.story import run_demo
from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent


def test_the_demo_from_files_to_an_answer(tmp_path: Path) -> None:
    output = io.StringIO()
    # Nodes that are asked early cannot have finished before the question arrives, however quick the machine is.
    sizes = {"num_records": 400, "vocab_size": 512, "hidden_size": 64, "num_layers": 2, "max_steps": 120}
    sizes["stop_share"] = 0.1
    handler = signal.getsignal(signal.SIGTERM)
    try:
        run_demo(tmp_path / "demo", console=Console(file=output, width=200), **sizes)
    finally:
        signal.signal(signal.SIGTERM, handler)
    told = output.getvalue()
    assert "exited with 75" in told
    assert "2 nodes x 1 process" in told
    assert "\n  Q: What does os.path.join do?\n  A: " in told

    steps = [e for e in read_events(RunDir(tmp_path / "demo" / "run").events(0)) if isinstance(e, StepEvent)]
    assert [e.step for e in steps] == list(range(1, 121))  # none lost and none done twice by the change of topology
    assert (tmp_path / "demo" / "exported" / "model.safetensors").exists()


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
        assert demo.wait(timeout=60) not in (0, None)
        assert not [process for process in family if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    finally:
        demo.kill()
        demo.wait()


def _wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
