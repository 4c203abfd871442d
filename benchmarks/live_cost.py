"""Runs whose ranks are watched in every second slot of the clock, for benchmarks.live."""

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.contestants.allranks_without import SLOT_SECONDS, is_watched
from benchmarks.measure import allranks_config
from benchmarks.workload import Workload

_WARM_UP_SECONDS = 5.0
_START_SECONDS = 300.0
_SEED, _DRAWS = 7, 4000


@dataclass(frozen=True)
class Step:
    """A step of rank 0; times in unix seconds."""

    number: int
    begin: float
    end: float
    tokens: int
    loss: float | None


@dataclass(frozen=True)
class Turn:
    """A slot in which ranks were watched, and its neighbours in which they were not; `cpu` is the launcher's share."""

    steps: int
    watched: float  # tokens a second
    unwatched: float
    watched_cpu: float
    unwatched_cpu: float


@dataclass(frozen=True)
class Cost:
    """Of all turns: the median ratio of the speeds, and where 95 % of such medians lie."""

    turns: int
    ratio: float
    low: float
    high: float
    watched_cpu: float
    unwatched_cpu: float

    def cells(self) -> list[str]:
        cpus = (f"{100 * self.watched_cpu:.2f} %", f"{100 * self.unwatched_cpu:.2f} %")
        return [str(self.turns), f"{self.ratio:.4f}", f"{self.low:.4f} to {self.high:.4f}", *cpus]

    def line(self) -> str:
        turns, ratio, interval, watched, unwatched = self.cells()
        return f"{ratio} of the speed ({interval}, {turns} slots); launcher {watched} of a core, {unwatched} unwatched"


def cost_of(turns: Sequence[Turn]) -> Cost:
    """The interval is that of medians of as many turns drawn from these again and again."""
    ratios = [turn.watched / turn.unwatched for turn in turns]
    drawn = random.Random(_SEED)
    medians = sorted(statistics.median(drawn.choices(ratios, k=len(ratios))) for _ in range(_DRAWS))
    low, high = medians[_DRAWS * 25 // 1000], medians[_DRAWS * 975 // 1000]
    cpu = (statistics.mean(turn.watched_cpu for turn in turns), statistics.mean(turn.unwatched_cpu for turn in turns))
    return Cost(len(turns), statistics.median(ratios), low, high, *cpu)


def measure_turns(workload: Workload, directory: Path, scratch: Path, seconds: float, slot: float) -> list[Turn]:
    """Train for `seconds` on two ranks, and compare the slots."""
    scratch.mkdir(parents=True)
    config = scratch / "config.yaml"
    config.write_text(json.dumps(run_config(workload, directory, scratch) | {"max_steps": 100_000}, indent=1))
    program = ["benchmarks.contestants.allranks_without", "live-by-turns", "train", str(config)]
    env = {**os.environ, SLOT_SECONDS: str(slot)}
    with (scratch / "output.log").open("wb") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", *program, "--nproc-per-node", "2"], env=env, stdout=log, stderr=log
        )
        try:
            _until_it_trains(scratch, launcher)
            cpu = _cpu_by_slot(psutil.Process(launcher.pid), seconds, slot)
        finally:
            launcher.terminate()
            launcher.wait()
    return _turns(steps_of(scratch / "run"), cpu, slot)


def run_config(workload: Workload, directory: Path, scratch: Path) -> dict[str, Any]:
    """As other benchmarks have it, for more than one rank, and as long as it takes."""
    return allranks_config(workload, directory, scratch) | {"num_epochs": 100_000}


def _until_it_trains(scratch: Path, launcher: subprocess.Popen) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while len(steps_of(scratch / "run")) < 3:
        if launcher.poll() is not None or time.monotonic() > deadline:
            sys.exit("error: it does not train:\n" + (scratch / "output.log").read_text()[-3000:])
        time.sleep(0.5)
    time.sleep(_WARM_UP_SECONDS)


def _cpu_by_slot(launcher: psutil.Process, seconds: float, slot: float) -> dict[int, float]:
    """The part of a core that the launcher took in each whole slot, by the slot's number."""
    found: dict[int, float] = {}
    last = int(time.time() / slot) + 1
    end = time.time() + seconds
    time.sleep(max(0.0, last * slot - time.time()))
    before = sum(launcher.cpu_times()[:2])
    while time.time() < end:
        time.sleep(max(0.0, (last + 1) * slot - time.time()))
        now = sum(launcher.cpu_times()[:2])
        found[last] = (now - before) / slot
        last, before = last + 1, now
    return found


def steps_of(run: Path) -> list[Step]:
    """Those that rank 0 has done."""
    from allranks.observe import RunDir, read_events
    from allranks.observe.events import StepEvent

    path = RunDir(run).events(0)
    if not path.is_file():
        return []
    events = [event for event in read_events(path) if isinstance(event, StepEvent)]
    return [Step(one.step, one.t - one.seconds, one.t, one.tokens, one.loss) for one in events]


def _turns(steps: Sequence[Step], cpu: dict[int, float], slot: float) -> list[Turn]:
    """Each watched slot against the mean of those before and after it: a trend of the machine favours neither."""
    by_slot: dict[int, list[Step]] = {}
    for step in steps:
        if int(step.begin / slot) == int(step.end / slot):
            by_slot.setdefault(int(step.end / slot), []).append(step)
    speeds = {
        number: sum(step.tokens for step in of) / sum(step.end - step.begin for step in of)
        for number, of in by_slot.items()
    }
    turns = []
    for number in sorted(speeds):
        around = [number - 1, number + 1]
        if is_watched((number + 0.5) * slot, slot) and all(one in cpu and one in speeds for one in (number, *around)):
            speed, share = (statistics.mean(of[one] for one in around) for of in (speeds, cpu))
            turns.append(Turn(len(by_slot[number]), speeds[number], speed, cpu[number], share))
    return turns
