"""When a fault was answered: the moment of each line on a terminal, and the record that benchmarks.faults reports.

Recording is no assertion: seconds belong to the machine, and how many of them are asked for is said in the report.
"""

import json
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from allranks.doctor.diagnosis import Diagnosis
from allranks.doctor.of_run import diagnosis_of_run
from tests.cluster.training import TRAIN, Training
from tests.patience import TIMEOUT_SECONDS

PROPERTY = "fault"


class Line(NamedTuple):
    moment: float
    """Seconds since 1970: all nodes of the lab have this machine's clock."""
    text: str


class Terminal:
    """A command on a node, whose pipe is read as it is written to; `training.finish` and `wait_until` take it, too."""

    def __init__(self, process: Any):
        self.process = process
        self._lines: list[Line] = []
        self._is_over = False
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for text in self.process.stdout:
            with self._changed:
                self._lines.append(Line(time.time(), text.rstrip("\n")))
                self._changed.notify_all()
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    @property
    def lines(self) -> list[Line]:
        with self._changed:
            return list(self._lines)

    @property
    def output(self) -> str:
        return "".join(f"{line.text}\n" for line in self.lines)

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def moment_of(self, text: str, after: float = 0.0) -> float | None:
        """When the first line with `text` came, of those after that moment."""
        return next((line.moment for line in self.lines if text in line.text and line.moment > after), None)

    def wait_for(self, text: str, timeout: float = TIMEOUT_SECONDS, *, after: float = 0.0) -> float:
        """Wait for a line with `text`; its moment. Errors: AssertionError, with the output, if none comes."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_over or self.moment_of(text, after) is not None, timeout=timeout)
        moment = self.moment_of(text, after)
        assert moment is not None, f"nowhere {text!r}:\n{self.output}"
        return moment

    def finish(self, timeout: float = TIMEOUT_SECONDS) -> str:
        """Wait for the end of the command; its output. Errors: subprocess.TimeoutExpired, with the output."""
        self._reader.join(timeout)
        if self._reader.is_alive():
            raise subprocess.TimeoutExpired(self.process.args, timeout, self.output)
        self.process.wait(timeout)
        return self.output

    def communicate(self, timeout: float = TIMEOUT_SECONDS) -> tuple[str, None]:
        """As a Popen has it."""
        return self.finish(timeout), None

    def poll(self) -> int | None:
        code: int | None = self.process.poll()
        return code

    def wait(self, timeout: float | None = None) -> int:
        return int(self.process.wait(timeout))

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)


def start_by_hand(training: Training, port: int, *more: object, num_nodes: int = 2, **env: str) -> list[Terminal]:
    """`allranks train` on nodes 0 and 1, or more, started on each."""
    words = (*TRAIN, "--nnodes", num_nodes, "--master-addr", "node0", "--master-port", port, *more)
    return [Terminal(training.start(rank, (*words, "--node-rank", rank), **env)) for rank in range(num_nodes)]


def record_failure(
    record_property: Callable[[str, object], None],
    run: Path,
    terminals: Sequence[Terminal],
    said: str,
    *,
    fault: str,
    injected: float,
    deadline: float = 0.0,
    way: Literal["train", "run"] = "train",
) -> Diagnosis:
    """`record_fault` of a run that is over: `said` was the answer on these terminals. Returns what the doctor says."""
    told = diagnosis_of_run(run)
    record_fault(
        record_property,
        fault=fault,
        way=way,
        injected=injected,
        deadline=deadline,
        told=[terminal.moment_of(said) for terminal in terminals],
        cause=told.cause,
        rank=told.rank,
        node=told.node,
    )
    return told


def record_fault(
    record_property: Callable[[str, object], None],
    *,
    fault: str,
    way: Literal["train", "run", "check"],
    injected: float,
    deadline: float = 0.0,
    told: Sequence[float | None],
    cause: str | None,
    rank: int | None = None,
    node: str | None,
) -> None:
    """Keep how long a fault took to be answered, before anything is asserted of it.

    `injected`: when it happened, in seconds since 1970; `deadline`: the seconds after that when it may be noticed, as
    a `hang_timeout` says, 0 for a death; `told`: when the answer came, on each terminal, None where it did not.
    `cause`, `rank` and `node` are what was named.
    """
    seconds = [None if moment is None else round(moment - injected - deadline, 2) for moment in told]
    record_property(
        PROPERTY,
        json.dumps(
            {
                "fault": fault,
                "way": way,
                "deadline": deadline,
                "seconds": seconds,
                "cause": cause,
                "rank": rank,
                "node": node,
            }
        ),
    )
