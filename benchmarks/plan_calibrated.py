"""What `allranks plan --calibrate` predicts of runs on this machine's CPU, beside what they take, with signed errors.

    python -m benchmarks.plan_calibrated                    all cases, once: eight minutes on a quiet machine
    python -m benchmarks.plan_calibrated --rounds 3         three times; the medians count
    python -m benchmarks.plan_calibrated --only lora        cases whose name has this word
    python -m benchmarks.plan_calibrated --twice            each case a second time, which knows of the first run

In each round the machine is calibrated for one rank and for two, by the command itself, and each case is a run of its
own; what one run leaves for later plans the next does not see. A run has 43 steps, and the median of all but its first
three counts: about eight have passed when memory is where it stays. One thread a rank, float32. A step's seconds are
without those in which other programs had the core, so the comparison can be made on a machine that is not quiet, but
with more noise: caches and memory are shared all the same.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.measure import allranks_config
from benchmarks.workload import Workload, write

WITHIN = 0.10
"""Part of a step's seconds that a prediction after `--calibrate` may be wrong by."""
SECOND_WITHIN = {"error": 0.03, "memory_error": 0.01}
"""What a second run's may: in its time, and in a rank's memory."""
_TIMEOUT_SECONDS = 1200
_TINY = Workload(
    name="qwen3, 5 M",
    model_type="qwen3",
    vocab_size=4096,
    num_layers=4,
    num_documents=1500,
    sequence_len=1024,
    blocks_per_step=1,
    target_share=0.6,
    measured_steps=40,
)
_SMALL = Workload(
    num_documents=100, min_tokens=512, sequence_len=512, blocks_per_step=2, target_share=0.6, measured_steps=40
)
_LARGER = Workload(
    name="llama, 42 M",
    vocab_size=16_000,
    hidden_size=512,
    intermediate_size=1536,
    num_layers=8,
    num_heads=8,
    num_key_value_heads=8,
    num_documents=50,
    min_tokens=512,
    sequence_len=512,
    blocks_per_step=1,
    target_share=0.6,
    measured_steps=40,
)


@dataclass(frozen=True)
class Case:
    """A workload with the config's further `keys`, on so many ranks of this machine."""

    name: str
    workload: Workload
    keys: dict[str, Any] = field(default_factory=dict)
    num_ranks: int = 1

    @property
    def workload_folder(self) -> str:
        """Of what it trains on: its own, for documents differ."""
        return report.slug(self.name)


def _changed(workload: Workload, **changes: Any) -> Workload:
    return Workload(**{**vars(workload), **changes})


CASES = (
    Case("tiny, short documents packed", _changed(_TINY, median_tokens=50, sigma_tokens=0.5)),
    Case("tiny, whole rows", _changed(_TINY, min_tokens=1024, num_documents=50)),
    Case("22 M, large vocabulary, whole rows", _SMALL),
    Case("42 M, whole rows", _LARGER),
    Case("42 M, recomputed", _changed(_LARGER, gradient_checkpointing=True)),
    Case("22 M, LoRA", _changed(_SMALL, lora_rank=16)),
    Case("22 M, DDP of 2 ranks", _SMALL, {"micro_batch_size": 1}, 2),
)


@dataclass(frozen=True)
class Found:
    """Seconds of a step, and tokens a second of all ranks together, which `predicted` seconds would make `planned`;
    by which part of itself the memory of a rank was predicted too large."""

    predicted: float
    measured: float
    rate: float
    memory_error: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def planned(self) -> float:
        return self.rate * self.measured / self.predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="a word of a case's name")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--twice", action="store_true", help="each case a second time, too")
    parser.add_argument("--no-report", action="store_true", help="print only; write nothing into benchmarks/reports")
    options = parser.parse_args()
    cases = [case for case in CASES if options.only.lower() in case.name.lower()]
    load = os.getloadavg()[0]
    rounds: list[dict[str, list[Found]]] = []
    with tempfile.TemporaryDirectory(prefix="plan-calibrated-") as directory:
        folder = Path(directory)
        for case in cases:
            if not (folder / case.workload_folder).exists():
                write(case.workload, folder / case.workload_folder)
        for number in range(1, options.rounds + 1):
            found: dict[str, list[Found]] = {}
            for num_ranks in sorted({case.num_ranks for case in cases}):
                of_size = [case for case in cases if case.num_ranks == num_ranks]
                calibrated = _calibrate(of_size[0], folder)
                for case in of_size:
                    found[case.name] = runs = []
                    for one in _runs(case, folder, calibrated, 1 + options.twice):
                        runs.append(one)
                        print(
                            f"round {number}  {case.name:36}{one.predicted:8.3f} s predicted"
                            f"{one.measured:8.3f} s measured{one.error:+8.1%}  memory {one.memory_error:+6.1%}",
                            flush=True,
                        )
            rounds.append(found)
    lines = table([{name: runs[0] for name, runs in found.items()} for found in rounds])
    if options.twice:
        lines += ["", "## The second run", "", *second_runs([{n: r[1] for n, r in found.items()} for found in rounds])]
    print("\n".join(["", *lines]))
    if not options.no_report:
        part = f"{options.only} twice" if options.twice else options.only
        print(f"report: {_write_report(lines, rounds, load, part)}")


def table(rounds: list[dict[str, Found]]) -> list[str]:
    """Of each case the medians over the rounds, and the errors' spread; last the median and the worst of all."""
    rows, errors = [], []
    for name in rounds[0]:
        every = [found[name] for found in rounds]
        error = statistics.median(one.error for one in every)
        errors.append(error)
        numbers = [
            f"{statistics.median(getattr(one, part) for one in every):.3f}" for part in ("predicted", "measured")
        ]
        rates = [f"{statistics.median(getattr(one, part) for one in every):,.0f}" for part in ("planned", "rate")]
        span = f" ({min(one.error for one in every):+.0%} to {max(one.error for one in every):+.0%})" * (
            len(rounds) > 1
        )
        rows.append([name, *numbers, *rates, f"{error:+.1%}{span}"])
    head = ["", "predicted, s", "measured, s", "predicted tokens/s", "measured tokens/s", "error of the time"]
    median, worst = statistics.median(map(abs, errors)), max(errors, key=abs)
    verdict = "within" if abs(worst) <= WITHIN else "not within"
    return [
        *report.table(head, rows),
        f"{len(errors)} cases, median {median:.1%}, worst {worst:+.1%}: {verdict} the {WITHIN:.0%} that are asked for.",
    ]


def second_runs(rounds: list[dict[str, Found]]) -> list[str]:
    """Of each case's second run: the medians of its errors over the rounds, and their spread."""
    rows, missed = [], []
    for name in rounds[0]:
        cells = [name]
        for part, within in SECOND_WITHIN.items():
            errors = [getattr(found[name], part) for found in rounds]
            error = statistics.median(errors)
            missed += [f"{name} ({error:+.1%})"] * (abs(error) > within)
            cells.append(f"{error:+.1%}" + f" ({min(errors):+.1%} to {max(errors):+.1%})" * (len(rounds) > 1))
        rows.append(cells)
    asked = "{error:.0%} in time and {memory_error:.0%} in memory".format(**SECOND_WITHIN)
    verdict = f"Not within {asked}: {', '.join(missed)}." if missed else f"All within {asked}."
    return [*report.table(["", "error of the time", "error of the memory"], rows), verdict]


def _config(case: Case, folder: Path, scratch: Path) -> Path:
    scratch.mkdir(parents=True, exist_ok=True)
    keys = allranks_config(case.workload, folder / case.workload_folder, scratch) | case.keys
    config = scratch / "config.yaml"
    config.write_text(json.dumps(keys | {"dataset_prepared_path": str(folder / case.workload_folder / "prepared")}))
    return config


def _calibrate(case: Case, folder: Path) -> Path:
    """The cache in which `allranks plan --calibrate` has left what it measured for so many ranks."""
    scratch = folder / f"calibrated-{case.num_ranks}"
    shutil.rmtree(scratch, ignore_errors=True)
    words = ["plan", str(_config(case, folder, scratch)), "--calibrate", "--gpus-per-node", str(case.num_ranks)]
    _allranks([*words, "--json"], scratch / "cache")
    return scratch / "cache"


def _runs(case: Case, folder: Path, calibrated: Path, number: int) -> Iterator[Found]:
    """Each knows the calibration and the ones before it."""
    cache = Path(tempfile.mkdtemp(dir=folder)) / "cache"
    shutil.copytree(calibrated, cache)
    ranks = ["--nproc-per-node", str(case.num_ranks)] if case.num_ranks > 1 else []
    for _ in range(number):
        scratch = Path(tempfile.mkdtemp(dir=folder))
        _allranks(["train", str(_config(case, folder, scratch)), *ranks], cache)
        yield _found(case, scratch)


def _found(case: Case, scratch: Path) -> Found:
    from allranks.observe import RunDir, read_events
    from allranks.observe.events import PlanEvent, StepEvent

    events = list(read_events(RunDir(scratch / "run").events(0)))
    plan = next(one for one in events if isinstance(one, PlanEvent))
    steps = [one for one in events if isinstance(one, StepEvent)][case.workload.warmup_steps :]
    tokens = statistics.fmean(one.tokens for one in steps)
    return Found(
        plan.predicted_seconds,
        plan.measured_seconds,
        tokens / plan.measured_seconds,
        plan.predicted_memory_bytes / plan.measured_memory_bytes - 1,
    )


def _allranks(words: list[str], cache: Path) -> None:
    env = {**os.environ, "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "allranks", *words],
        env=env,
        cwd=cache.parent,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode:
        sys.exit(f"error: allranks {words[0]} ended with exit code {done.returncode}:\n{done.stdout}{done.stderr}")


def _write_report(lines: list[str], rounds: list[dict[str, list[Found]]], load: float, part: str) -> Path:
    facts = report.machine()
    today = report.today()
    hardware = report.hardware(facts)
    text = [
        f"# Predicted after `allranks plan --calibrate`, and measured, on {hardware}, {today}",
        "",
        f"{len(rounds)} {'rounds' if len(rounds) > 1 else 'round'} of a calibration and a run of each case; "
        f"{_TINY.num_steps} steps, the first {_TINY.warmup_steps} left out. One thread a rank, float32. Seconds of a "
        "step are without those in which other programs had the core. Load average of the machine before: "
        f"{load:.1f} (0 is a quiet machine). + is a prediction that is too slow.",
        "",
        *lines,
        "",
        *report.settings("Machine", facts),
        f"Command: `python -m benchmarks.plan_calibrated {' '.join(sys.argv[1:])}`".rstrip("` ") + "`",
        "",
    ]
    return report.saved("plan-calibrated", hardware, text, part=part)


if __name__ == "__main__":
    main()
