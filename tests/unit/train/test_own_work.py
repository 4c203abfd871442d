"""What a thread works itself, by the kernel's own account of it."""

import subprocess
import sys

from allranks.train.own_work import OwnWork

WORKS = """
import threading, time
from allranks.train.own_work import OwnWork

work = OwnWork()
work.begin()
begin = time.thread_time()
while time.thread_time() < begin + 0.3:
    pass
busy = work.end()
work.begin()
threading.Event().wait(0.3)
print(busy, work.end())
"""


def test_work_counts_and_waiting_does_not() -> None:
    """In a process of its own, whose main thread works and then waits, as for others in a collective."""
    busy, waiting = map(float, subprocess.check_output([sys.executable, "-c", WORKS], text=True).split())
    assert busy >= 0.29
    assert waiting < busy


def test_on_a_gpu_nothing_is_known() -> None:
    work = OwnWork(on_gpu=True)
    work.begin()
    assert work.end() is None
