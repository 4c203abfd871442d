"""A healthy run on a machine that does much else: in 2,000 steps no rank, link or hang is named."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from allranks.live.from_events import table_of
from tests.cluster.conftest import Run

NUM_STEPS = 2000
# A program that is at work and one that rests, by turns of different lengths: what it takes from the ranks changes.
BUSY = """
import itertools, random, time
random.seed({number})
while True:
    until = time.monotonic() + random.uniform(0.05, 3.0)
    while time.monotonic() < until:
        pass
    time.sleep(random.uniform(0.0, 0.5))
"""


@pytest.fixture
def loaded_machine() -> Iterator[list[subprocess.Popen]]:
    """Another program on each core."""
    cores = len(os.sched_getaffinity(0))
    programs = [subprocess.Popen([sys.executable, "-c", BUSY.format(number=number)]) for number in range(cores)]
    yield programs
    for program in programs:
        program.kill()
        program.wait()


@pytest.mark.thorough
def test_on_a_loaded_machine_nobody_is_named(run: Callable[..., Run], loaded_machine: list[subprocess.Popen]) -> None:
    keys = {"max_steps": NUM_STEPS, "num_epochs": 1000, "sequence_len": 64, "batch_size": 2, "micro_batch_size": 1}
    done = run("--nproc-per-node", "2", **keys)
    assert [program.poll() for program in loaded_machine] == [None] * len(loaded_machine)
    assert max(done.losses()) == NUM_STEPS
    named = [event for event in done.events("straggler") if event.is_slow]
    assert named == []
    assert done.events("warning") == []
    for word in ("is slow", "hang", "have been in phase", "has been in phase"):
        assert word not in done.output, done.output
    table = table_of(done.directory)
    assert (table.stragglers, table.overdue) == ((), ())
    assert table.ended is not None and table.ended.exit_code == 0
