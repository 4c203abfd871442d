"""A run whose ranks are watched more in some slots of the clock than in others, and what that costs: see
benchmarks.live."""

import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.live_doses import DOSES, SLOT_SECONDS, dose_of
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
class Slot:
    """Of the clock; `speed` in tokens a second over the steps that lie wholly in it, `cpu` of the launcher in cores."""

    dose: int
    steps: int
    speed: float
    cpu: float


Block = tuple[Slot, ...]
"""Slots that follow each other, one of each dose."""


@dataclass(frozen=True)
class Estimate:
    """A value, and where 95 % of such values lie when blocks are drawn from these again and again."""

    value: float
    low: float
    high: float

    def text(self, times: float = 1.0, form: str = ".2f") -> str:
        return f"{times * self.value:{form}} ({times * self.low:{form}} to {times * self.high:{form}})"


def estimate(blocks: Sequence[Block], of: Callable[[Block], float]) -> Estimate:
    """The median of what `of` says of each block: a burst of other work in one does not decide it."""
    values = [of(block) for block in blocks]
    drawn = random.Random(_SEED)
    medians = sorted(statistics.median(drawn.choices(values, k=len(values))) for _ in range(_DRAWS))
    return Estimate(statistics.median(values), medians[_DRAWS * 25 // 1000], medians[_DRAWS * 975 // 1000])


def lost_speed(block: Block) -> float:
    """The part of the tokens/s that one look a second costs, by the slope of their logarithm over the doses."""
    return -_slope(block, lambda slot: math.log(slot.speed))


def used_cpu(block: Block) -> float:
    """Cores that the launcher takes for one look a second."""
    return _slope(block, lambda slot: slot.cpu)


def speed_at(dose: int) -> Callable[[Block], float]:
    """The speed at a dose, over that without watching in the same block."""
    return lambda block: _at(block, dose).speed / _at(block, 0).speed


def cpu_at(dose: int) -> Callable[[Block], float]:
    return lambda block: _at(block, dose).cpu


def _at(block: Block, dose: int) -> Slot:
    return next(slot for slot in block if slot.dose == dose)


def _slope(block: Block, value: Callable[[Slot], float]) -> float:
    return statistics.linear_regression([slot.dose for slot in block], [value(slot) for slot in block]).slope


def measure_blocks(workload: Workload, directory: Path, scratch: Path, seconds: float, slot: float) -> list[Block]:
    """Train for `seconds` on two ranks."""
    scratch.mkdir(parents=True)
    config = scratch / "config.yaml"
    config.write_text(json.dumps(run_config(workload, directory, scratch) | {"max_steps": 100_000}, indent=1))
    program = ["benchmarks.contestants.allranks_without", "live-by-doses", "train", str(config)]
    env = {**os.environ, SLOT_SECONDS: str(slot)}
    with (scratch / "output.log").open("wb") as log:
        launcher = subprocess.Popen(
            [sys.executable, "-m", *program, "--nproc-per-node", "2"], env=env, stdout=log, stderr=log
        )
        try:
            _until_it_trains(scratch, launcher)
            cpu = _cpu_by_slot(launcher.pid, seconds, slot)
        finally:
            launcher.terminate()
            launcher.wait()
    return blocks_of(steps_of(scratch / "run"), cpu, slot)


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


def _cpu_by_slot(launcher: int, seconds: float, slot: float) -> dict[int, float]:
    """The part of a core that the launcher took in each whole slot, by the slot's number."""
    found: dict[int, float] = {}
    last = int(time.time() / slot) + 1
    end = time.time() + seconds
    time.sleep(max(0.0, last * slot - time.time()))
    before = _cpu_seconds(launcher)
    while time.time() < end:
        time.sleep(max(0.0, (last + 1) * slot - time.time()))
        now = _cpu_seconds(launcher)
        found[last] = (now - before) / slot
        last, before = last + 1, now
    return found


def _cpu_seconds(pid: int) -> float:
    """Of its threads so far, in the scheduler's nanoseconds: stat(5) counts ticks of ten milliseconds."""
    found = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += int((task / "schedstat").read_text().split()[0])
    return found / 1e9


def steps_of(run: Path) -> list[Step]:
    """Those that rank 0 has done."""
    from allranks.observe import RunDir, read_events
    from allranks.observe.events import StepEvent

    path = RunDir(run).events(0)
    if not path.is_file():
        return []
    events = [event for event in read_events(path) if isinstance(event, StepEvent)]
    return [Step(one.step, one.t - one.seconds, one.t, one.tokens, one.loss) for one in events]


def blocks_of(steps: Iterable[Step], cpu: dict[int, float], slot: float) -> list[Block]:
    """The blocks of which all slots are known; `cpu`: the launcher's cores, by the slot's number."""
    by_slot: dict[int, list[Step]] = {}
    for step in steps:
        if int(step.begin / slot) == int(step.end / slot):
            by_slot.setdefault(int(step.end / slot), []).append(step)
    known = {
        number: Slot(
            dose_of(number),
            len(of),
            sum(step.tokens for step in of) / sum(step.end - step.begin for step in of),
            cpu[number],
        )
        for number, of in by_slot.items()
        if number in cpu
    }
    size = len(DOSES)
    firsts = sorted({number - number % size for number in known})
    blocks = [tuple(known[first + place] for place in range(size) if first + place in known) for first in firsts]
    return [block for block in blocks if len(block) == size]
