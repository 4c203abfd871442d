"""What trackers wrote, read back with their own libraries (or, for an offline run of W&B, from its file)."""

from __future__ import annotations

import os
import struct
from pathlib import Path

Curve = list[tuple[int, float]]


def tensorboard_curve(run: Path, name: str) -> Curve:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "trackers" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(point.step, point.value) for point in events.Scalars(name)]


def wandb_curve(run: Path, name: str) -> Curve:
    """Over all starts of the run, in order; all must have the same id."""
    points: Curve = []
    records = wandb_records(run)
    assert len({record.run.run_id for record in records if record.WhichOneof("record_type") == "run"}) == 1
    for record in records:
        if record.WhichOneof("record_type") == "history":
            values = {item.key or ".".join(item.nested_key): item.value_json for item in record.history.item}
            if name in values:
                points.append((int(values["_step"]), float(values[name])))
    return points


def wandb_records(run: Path) -> list:
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    files = (run / "trackers" / "wandb").glob("offline-run-*/*.wandb")
    for file in sorted(files, key=lambda path: path.stat().st_mtime_ns):
        for data in _leveldb_records(file.read_bytes()):
            record = Record()
            record.ParseFromString(data)
            records.append(record)
    return records


def _leveldb_records(content: bytes) -> list[bytes]:
    """LevelDB's log format after W&B's header of 7 bytes: blocks of 32 KiB, records whole (1) or in parts (2, 3, 4)."""
    found, parts, at, block = [], b"", 7, 32768
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        parts = content[at + 7 : at + 7 + size] if kind in (1, 2) else parts + content[at + 7 : at + 7 + size]
        if kind in (1, 4):
            found.append(parts)
        at += 7 + size
    return found


def mlflow_curve(run: Path, name: str) -> Curve:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{run}/trackers/mlflow.db")
    experiment = client.get_experiment_by_name("allranks-tests")
    (only,) = client.search_runs([experiment.experiment_id])
    return [(metric.step, metric.value) for metric in client.get_metric_history(only.info.run_id, name)]


def trackio_curve(run: Path, name: str) -> Curve:
    import sqlite3

    points = []
    with sqlite3.connect(Path(os.environ["TRACKIO_DIR"]) / "allranks-tests.db") as database:
        import json

        for run_name, step, metrics in database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"):
            values = json.loads(metrics)
            if name in values:
                points.append((step, values[name], run_name))
    assert len({run_name for *_, run_name in points}) == 1
    return [(step, value) for step, value, _ in points]
