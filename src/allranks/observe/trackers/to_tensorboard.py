"""Event files for TensorBoard, without TensorFlow or torch: `tensorboard --logdir OUTPUT_DIR/trackers/tensorboard`."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.plugins.text.metadata import create_summary_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from allranks.observe.trackers.forward import Memory

_DT_STRING = 7  # tensorflow/core/framework/types.proto


class TensorBoard:
    def __init__(self, folder: Path, first_step: int) -> None:
        self._writer = EventFileWriter(str(folder))
        # What earlier event files hold of these steps is no longer shown.
        start = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first_step, session_log=start))

    def log(self, step: int, values: Mapping[str, float], seconds: float) -> None:
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=points)))

    def note(self, kind: str, text: str, step: int, seconds: float) -> None:
        tensor = TensorProto(dtype=_DT_STRING, string_val=[text.encode()])
        tensor.tensor_shape.dim.add().size = 1
        metadata = create_summary_metadata(display_name=kind, description="")
        value = Summary.Value(tag=f"run/{kind}", tensor=tensor, metadata=metadata)
        self._writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=[value])))

    def flush(self) -> None:
        self._writer.flush()

    def finish(self, code: int | None, reason: str) -> None:
        self._writer.close()


def open_tracker(spec: dict[str, Any], memory: Memory) -> TensorBoard:
    last_step = memory.last_step.get("step", spec["start_step"])
    tracker = TensorBoard(Path(spec["folder"]) / "tensorboard", last_step + 1)
    tracker.note("config", f"```json\n{json.dumps(spec['config'], indent=2)}\n```", last_step, time.time())
    return tracker
