"""What a process starts, and its end."""

import subprocess
import sys

import pytest

from allranks.cluster.descendants import descendants, ends_what_it_starts
from tests.patience import await_end

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")

# Its child has a session of its own, as those of a data loader may.
STARTS_ANOTHER = """
import subprocess, sys
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


def test_what_was_started_within_is_killed_and_nothing_else() -> None:
    earlier = subprocess.Popen(["sleep", "600"])
    try:
        with pytest.raises(KeyError), ends_what_it_starts():
            started = subprocess.Popen([sys.executable, "-c", STARTS_ANOTHER], stdout=subprocess.PIPE, text=True)
            assert started.stdout is not None
            below = int(started.stdout.readline())
            raise KeyError
        assert started.wait() == -9
        await_end(below)
        assert earlier.pid in descendants() and earlier.poll() is None
    finally:
        earlier.kill()
        earlier.wait()
