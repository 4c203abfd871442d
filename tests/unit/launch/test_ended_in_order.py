"""A signal that ends a command has it clean up first."""

import signal
import subprocess
import sys

IS_HUNG_UP = """
import os, signal
from allranks.launch.stop import ended_in_order
signal.signal(signal.SIGHUP, signal.SIG_DFL)
with ended_in_order():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        signal.sigtimedwait([], 60)
    finally:
        os.kill(os.getpid(), signal.SIGHUP)
        print("cleaned up")
"""


def test_a_second_signal_does_not_disturb_what_the_first_cleans_up() -> None:
    done = subprocess.run([sys.executable, "-c", IS_HUNG_UP], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGTERM, "cleaned up\n", "")
