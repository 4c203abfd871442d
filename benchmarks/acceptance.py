"""Does allranks do on this GPU what it does on a CPU, and how fast? One run of at most eight minutes, no download.

    python -m benchmarks.acceptance                            all parts that this machine can run
    python -m benchmarks.acceptance --list                     which there are
    python -m benchmarks.acceptance --only 'losses,8b-*' --budget-seconds 240
    python -m benchmarks.acceptance --device cpu               what needs no GPU

Made for one H100 or H200. Each part runs in a process of its own with a deadline; the report in `benchmarks/reports`
(Markdown, and the same as JSON lines) is written as the parts go, so that a run that is cut short leaves what it knows.
Models have random weights. What cannot be run here says why. Exit code 1 if something is not as expected.

Not yet run on a GPU: no figure of it is published.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.part import Part, Place, Row
from benchmarks.parts.table import ENVIRONMENT, PARTS
from benchmarks.parts.written import Outcome, Report

_REPOSITORY = Path(__file__).resolve().parent.parent
_LEAST_SECONDS = 20  # with less left a part cannot be expected to import its libraries and say something
_TAIL_LINES = 25


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="name the parts, and end")
    parser.add_argument("--only", default="", help="parts, separated by commas; patterns like '8b-*'")
    parser.add_argument("--skip", default="", help="parts to leave out, likewise")
    parser.add_argument("--budget-seconds", type=float, default=480, help="for all parts together (default 480)")
    parser.add_argument("--patience", type=float, default=1, help="times each part's deadline, on a busy machine")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU, if there")
    parser.add_argument("--jobs", type=int, help="checks that run at a time (default: one for four cores, at most 4)")
    parser.add_argument("--reports", type=Path, default=_REPOSITORY / "benchmarks" / "reports", help="a folder")
    parser.add_argument(
        "--scratch", type=Path, help="folder for models and checkpoints: 25 GB for the 1B and 8B shapes"
    )
    options = parser.parse_args(arguments)
    if options.list:
        for part in parts:
            print(f"{part.name:14}{part.about}{'' if part.is_usual else ' (only where it is named)'}")
        return 0
    try:
        chosen = choose(parts, options.only, options.skip)
    except ValueError as error:
        parser.error(str(error))
    jobs = options.jobs or max(1, min(4, len(os.sched_getaffinity(0)) // 4))
    # Ended from outside, as by a scheduler's time limit, it still kills what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    where = {"prefix": "acceptance-", "dir": options.scratch, "ignore_cleanup_errors": True}
    with tempfile.TemporaryDirectory(**where) as folder:
        report = Report(options.reports)
        run = _Run(Path(folder), options.budget_seconds, report, options.device, options.patience)
        try:
            run.all(chosen, jobs)
        except KeyboardInterrupt:
            run.report.note("Interrupted: what follows was not run.")
            print("interrupted", file=sys.stderr)
        finally:
            run.stop()
        print(f"report: {run.report.path}")
        return 1 if run.report.is_bad else 0


def choose(parts: Sequence[Part], only: str, skip: str) -> list[Part]:
    """The parts to run, in their order. Raises ValueError naming a pattern that no part fits."""

    def fitting(text: str) -> set[str]:
        found: set[str] = set()
        for pattern in filter(None, text.split(",")):
            names = fnmatch.filter([part.name for part in parts], pattern)
            if not names:
                raise ValueError(f"no part is called {pattern!r}; choose from {', '.join(one.name for one in parts)}")
            found.update(names)
        return found

    named, left_out = fitting(only), fitting(skip)
    return [part for part in parts if (part.name in named if named else part.is_usual) and part.name not in left_out]


class _Run:
    """The processes of one acceptance run."""

    def __init__(self, folder: Path, budget_seconds: float, report: Report, device: str, patience: float) -> None:
        self._folder, self.report, self._device, self._patience = folder, report, device, patience
        self._budget_seconds = budget_seconds
        self._end = time.monotonic() + budget_seconds
        self._running: list[_Child] = []
        self._shared = folder / "shared"
        self._shared.mkdir()

    def all(self, chosen: Sequence[Part], jobs: int) -> None:
        """Run them: one by one where a part measures, else so many at a time, in their order."""
        waiting = list(chosen)
        self.report.begin([part.name for part in waiting], self._budget_seconds)
        if self._device == "auto":
            waiting = [part for part in waiting if part.name != ENVIRONMENT.name]
            self._look(ENVIRONMENT)
        while waiting or self._running:
            while waiting and self._has_room(waiting[0], jobs):
                self._start(waiting.pop(0))
            for child in list(self._running):
                self._watch(child)
            time.sleep(0.05)
        self.report.end()

    def stop(self) -> None:
        """Kill what still runs."""
        for child in self._running:
            child.kill()

    def _look(self, part: Part) -> None:
        """Find out which device there is, before anything is run on it."""
        self._start(part)
        while self._running:
            self._watch(self._running[0])
            time.sleep(0.05)
        outcome = self.report.outcomes[-1]
        self._device = next((str(row.values["device"]) for row in outcome.rows if "device" in row.values), "cpu")

    def _has_room(self, part: Part, jobs: int) -> bool:
        if part.is_alone or any(child.part.is_alone for child in self._running):
            return not self._running
        return len(self._running) < jobs

    def _start(self, part: Part) -> None:
        left = self._end - time.monotonic()
        if reason := part.lack(self._device):
            self._finish(Outcome(part, "skipped", 0.0, note=reason))
        elif left < _LEAST_SECONDS:
            note = f"{max(left, 0):.0f} s of the budget were left, and it needs {_LEAST_SECONDS} at least"
            self._finish(Outcome(part, "not reached", 0.0, note=note))
        else:
            scratch = self._folder / part.name
            scratch.mkdir()
            place = Place(self._device, scratch, self._shared, part.argument)
            self._running.append(_Child(part, place, min(part.seconds * self._patience, left)))

    def _watch(self, child: _Child) -> None:
        code = child.poll()  # before its rows are read: those that it wrote last are then among them
        rows = child.new_rows()
        child.rows += rows
        for row in rows:
            self.report.row(child.part, row)
        seconds = time.monotonic() - child.began
        if code is None and seconds < child.seconds:
            return
        self._running.remove(child)
        if code is None:
            child.kill()
            note = f"killed: not done after {child.seconds:.0f} s"
            self._finish(Outcome(child.part, "killed", seconds, child.rows, note, child.tail()))
        elif code != 0:
            how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
            self._finish(Outcome(child.part, "broke", seconds, child.rows, f"ended {how}", child.tail()))
        else:
            is_good = all(row.ok is not False for row in child.rows)
            self._finish(Outcome(child.part, "passed" if is_good else "failed", seconds, child.rows))

    def _finish(self, outcome: Outcome) -> None:
        self.report.outcome(outcome)
        note = f": {outcome.note}" if outcome.note else ""
        print(f"{outcome.part.name:16}{outcome.word:12}{outcome.seconds:6.1f} s{note}", flush=True)


class _Child:
    """The process of one part, with all that it starts in one process group."""

    def __init__(self, part: Part, place: Place, seconds: float) -> None:
        self.part, self.seconds = part, seconds
        self.rows: list[Row] = []
        self._path = place.scratch / "rows.jsonl"
        self._path.touch()
        self._file = self._path.open("rb")
        self._half = b""
        self._log = place.scratch / "output.log"
        environment = dict(os.environ, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
        sources = (str(_REPOSITORY), str(_REPOSITORY / "src"), environment.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sources))
        if place.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        argv = [sys.executable, "-m", "benchmarks.parts.child", part.module, place.device]
        argv += [str(place.scratch), str(place.shared), str(self._path), place.argument]
        self.began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=place.scratch,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        return self._process.poll()

    def new_rows(self) -> list[Row]:
        """Rows whose line is whole."""
        *lines, self._half = (self._half + self._file.read()).split(b"\n")
        return [Row(**json.loads(line)) for line in lines]

    def kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tail(self) -> str:
        """The end of what it printed."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])


if __name__ == "__main__":
    sys.exit(main())
