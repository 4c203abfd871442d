"""A plan that is ended while it measures or traces leaves no process and no file behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.patience import TIMEOUT_SECONDS, await_end
from tests.planned import MODEL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

# As a user types it, with devices that are measured at once and ranks that train for hours.
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background, where it is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from types import SimpleNamespace
from allranks.launch.plan import whole_steps
from allranks.plan import calibrate
calibrate.calibrate = lambda **keys: SimpleNamespace(num_threads=1)
whole_steps._KEYS = {**whole_steps._KEYS, "max_steps": 10**6, "num_epochs": 10**6}
whole_steps._MODEL = {**whole_steps._MODEL, "vocab_size": 64, "hidden_size": 12, "num_hidden_layers": 1}
from allranks.cli.main import main
main()
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    (tmp_path / "temporary").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    return tmp_path / "temporary"


def _signalled(temporary: Path, option: str, sent: signal.Signals, has_begun: Callable[[], bool]) -> tuple[int, str]:
    """The exit code and what was said, of a plan that got the signal when it had begun. All processes have ended."""
    env = {**os.environ, "TMPDIR": str(temporary), "XDG_CACHE_HOME": str(temporary.parent / "cache")}
    words = ["plan", str(temporary.parent / "model"), "--gpus-per-node", "2", option]
    plan = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not has_begun():
        assert plan.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    started = psutil.Process(plan.pid).children(recursive=True)
    assert started
    plan.send_signal(sent)
    said = plan.communicate(timeout=TIMEOUT_SECONDS)[1]
    for one in started:
        await_end(one.pid)
    return plan.returncode, said


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_ranks_train(temporary: Path, sent: signal.Signals) -> None:
    code, said = _signalled(temporary, "--calibrate", sent, lambda: bool([*temporary.glob("*/full/events/*")]))
    assert code == 128 + sent and "Traceback" not in said, said
    assert ("interrupted: no plan was made" in said) is (sent == signal.SIGINT)
    assert not [*temporary.iterdir()]


def test_while_the_engine_is_traced(temporary: Path) -> None:
    code, said = _signalled(temporary, "--trace", signal.SIGTERM, lambda: bool([*temporary.glob("**/config.json")]))
    assert code == 128 + signal.SIGTERM and "Traceback" not in said, said
    assert not [*temporary.iterdir()]
