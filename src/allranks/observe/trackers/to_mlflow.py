"""MLflow: a server, or a database in the run directory (`mlflow ui --backend-store-uri sqlite:///…/mlflow.db`)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param

from allranks.exit_codes import DONE, INTERRUPTED, PREEMPTED
from allranks.observe.trackers.forward import Memory

# Exit code -> how a run ended, in MLflow's words; all others failed.
_STATUS = {DONE: "FINISHED", PREEMPTED: "KILLED", INTERRUPTED: "KILLED", None: "KILLED"}
_LONGEST_PARAMETER = 500  # signs; older servers take no more
_PARAMETERS_AT_ONCE = 100  # MLflow's own limit for a request


class MLflow:
    def __init__(self, client: MlflowClient, run: str) -> None:
        self._client, self._run = client, run
        self._waiting: list[Metric] = []

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        self._waiting += [Metric(name, value, round(seconds * 1000), step) for name, value in values.items()]

    def note(self, kind: str, text: str, step: int, seconds: float) -> None:
        self._client.set_tag(self._run, f"run.{kind}", text)

    def flush(self) -> None:
        # MLflow takes a thousand metrics in a request.
        for first in range(0, len(self._waiting), 1000):
            self._client.log_batch(self._run, metrics=self._waiting[first : first + 1000])
        self._waiting = []

    def finish(self, code: int | None, reason: str) -> None:
        self._client.set_tag(self._run, "run.exit", reason)
        self._client.set_terminated(self._run, _STATUS.get(code, "FAILED"))


def open_tracker(spec: dict[str, Any], memory: Memory) -> MLflow:
    settings = spec["settings"]
    own = f"sqlite:///{spec['folder']}/mlflow.db"
    uri = settings["mlflow_tracking_uri"] or os.environ.get("MLFLOW_TRACKING_URI") or own
    if uri.startswith("file:") or "://" not in uri:
        # MLflow warns of its folders of files as of something old, and refuses them without this.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=uri)
    if memory.id is not None:
        client.update_run(memory.id, status="RUNNING")
        return MLflow(client, memory.id)
    name = settings["mlflow_experiment_name"] or os.environ.get("MLFLOW_EXPERIMENT_NAME") or "allranks"
    found = client.get_experiment_by_name(name)
    place = f"file://{spec['folder']}/mlflow" if uri == own else None
    experiment = found.experiment_id if found else client.create_experiment(name, artifact_location=place)
    run = client.create_run(experiment, run_name=settings["mlflow_run_name"] or spec["run_name"])
    memory.id, memory.name = run.info.run_id, run.info.run_name
    parameters = [Param(key, str(value)[:_LONGEST_PARAMETER]) for key, value in spec["config"].items()]
    for first in range(0, len(parameters), _PARAMETERS_AT_ONCE):
        client.log_batch(memory.id, params=parameters[first : first + _PARAMETERS_AT_ONCE])
    return MLflow(client, memory.id)
