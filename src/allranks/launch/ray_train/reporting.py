"""Metrics and checkpoints of a run, reported to Ray beside the training, which knows nothing of it."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

from allranks.checkpoint.commit import step_of
from allranks.launch.ray_train.coordinator import Command
from allranks.launch.ray_train.tail import Report, Tail

POINTER = "allranks.json"
"""The one file of a checkpoint as Ray sees it: it names ours, which has the gigabytes and stays where it is."""
# Ray takes one report at each of its polls: every 2 s, or RAY_TRAIN_HEALTH_CHECK_INTERVAL_S.
_SECONDS_BETWEEN_REPORTS = 1.0


class Reporter(threading.Thread):
    """Calls `ray.train.report`, which every rank of a run must call equally often: rank 0 says on the coordinator when.

    A thread, because a report waits for all ranks and for Ray, and the worker must go on listening.
    """

    def __init__(self, coordinator: Any, rank: int, ray_directory: Path, attempt: int, tail: Tail) -> None:
        super().__init__(daemon=True, name="reporter")
        self.note: str | None = None
        self._coordinator, self._rank, self._tail = coordinator, rank, tail
        # Ray makes it beside its controller; ranks that do not see it cannot hand checkpoints over.
        self._ray_directory, self._attempt = ray_directory, attempt
        self._wake = threading.Event()
        self._finishing = False
        self._num_reports = self._committed = 0
        self._command = Command(stop=False, num_reports=0, closed=False)

    def hear(self, command: Command) -> None:
        """Pass on what the coordinator said last."""
        self._command = command
        if self._rank:
            self._wake.set()

    def finish(self) -> None:
        """The engine has ended: report what is left."""
        self._finishing = True
        self._wake.set()

    def run(self) -> None:
        try:
            if self._rank == 0:
                self._lead()
            else:
                self._follow()
        except Exception as error:  # whatever Ray raises: the training is not to end for it
            self.note = f"Ray could not be told of metrics and checkpoints: {type(error).__name__}: {error}"
        finally:
            if self._rank == 0:
                with contextlib.suppress(Exception):  # the coordinator is gone, and with it all who would follow
                    self._announce(self._num_reports, closed=True)

    def _lead(self) -> None:
        while True:
            finishing = self._finishing  # before reading: all that the engine wrote is read after it has ended
            for report in self._tail.read():
                if report.checkpoint:
                    self._committed = max(self._committed, step_of(Path(report.checkpoint)))
                self._num_reports += 1
                self._announce(self._num_reports, closed=False)
                self._report(report)
            if finishing:
                return
            self._wake.wait(_SECONDS_BETWEEN_REPORTS)

    def _follow(self) -> None:
        while True:
            command = self._command
            while self._num_reports < command.num_reports:
                self._num_reports += 1
                self._report(Report({}))
            if command.closed:
                return
            self._wake.wait()
            self._wake.clear()

    def _sees_ray_directory(self) -> bool:
        if self._ray_directory.is_dir():
            return True
        if not self.note:
            self.note = "output_dir is not shared between the nodes: Ray is told of metrics, but of no checkpoints"
        return False

    def _announce(self, num_reports: int, *, closed: bool) -> None:
        import ray

        ray.get(self._coordinator.announce.remote(num_reports, closed, self._committed))

    def _report(self, report: Report) -> None:
        from ray.train import Checkpoint
        from ray.train import report as report_to_ray

        if report.checkpoint is None or not self._sees_ray_directory():
            report_to_ray(report.metrics)
            return
        checkpoint = Path(report.checkpoint)
        with tempfile.TemporaryDirectory() as folder:
            pointer = {"checkpoint": str(checkpoint.absolute()), "host": socket.gethostname()}
            Path(folder, POINTER).write_text(json.dumps({"step": step_of(checkpoint), **pointer}) + "\n")
            # After a restart a step may be saved again.
            name = f"{checkpoint.name}-attempt-{self._attempt}"
            report_to_ray(report.metrics, checkpoint=Checkpoint.from_directory(folder), checkpoint_dir_name=name)
