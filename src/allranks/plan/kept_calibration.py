"""Where calibrations and runs are kept: one JSON file a device in the user's cache, which every later plan for the same
device of the same host reads."""

from __future__ import annotations

import json
import math
import os
import re
import socket
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

from allranks import durable
from allranks.errors import RefusedError
from allranks.json_types import is_a
from allranks.plan.calibration import PAIRS, Calibration, PastRun, digests
from allranks.plan.hardware import Link
from allranks.plan.work import attended
from allranks.plan.workload import Workload
from allranks.user_cache import one_at_a_time, user_cache

_VERSION = 5
_MOST_RUNS = 200


def load(device: str, host: str | None = None, environment: Mapping[str, str] = os.environ) -> Calibration | None:
    """What is kept of this device; None where nothing is, or what is kept cannot be read: it is measured anew then."""
    host = host or socket.gethostname()
    try:
        read = json.loads(_file(device, host, environment).read_text(encoding="utf-8"))
        if read.pop("version") != _VERSION:
            return None
        return _from_json(read)
    except (RefusedError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where it is kept. Raises RefusedError for a user without a home."""
    return user_cache("plan", environment)


def keep(calibration: Calibration, environment: Mapping[str, str] = os.environ) -> Path:
    """Write it for later plans; returns the file."""
    file = _file(calibration.device, calibration.host, environment)
    durable.write(file, json.dumps({"version": _VERSION, **asdict(calibration)}, indent=1) + "\n", make_parents=True)
    return file


@contextmanager
def changing(environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Within, what is loaded and kept again loses nothing that another process keeps meanwhile."""
    with one_at_a_time(folder(environment) / "lock"):
        yield


def record_run(
    workload: Workload,
    device: str,
    *,
    num_nodes: int,
    predicted: float,
    measured: float,
    predicted_memory: float = 0.0,
    measured_memory: float = 0.0,
    steps: int = 0,
    environment: Mapping[str, str] = os.environ,
) -> None:
    """Add what a run took, for later plans; `predicted` without earlier runs. A cache that cannot be written is no
    reason for a run to fail."""
    if not (predicted > 0 and measured > 0):
        return
    run = PastRun(
        *digests(workload),
        num_nodes,
        workload.tokens,
        attended(workload),
        predicted,
        measured,
        predicted_memory,
        measured_memory,
        when=time.time(),
        method=workload.method,
        steps=steps,
    )
    with suppress(RefusedError, OSError), changing(environment):
        kept = load(device, environment=environment)
        kept = kept or Calibration(socket.gethostname(), device, on_cpu=workload.on_cpu)
        keep(replace(kept, runs=[*kept.runs, run][-_MOST_RUNS:]), environment)


def _from_json(read: dict[str, Any]) -> Calibration:
    """Raises ValueError, TypeError or KeyError for what no calibration is."""
    link = read.pop("within")
    within = Link(**{**link, "aliases": tuple(link["aliases"])}) if link is not None else None
    runs = tuple(PastRun(**run) for run in read.pop("runs"))
    for name in PAIRS:
        read[name] = tuple((float(a), float(b)) for a, b in read[name])
    found = Calibration(**{**read, "runs": runs, "within": within})
    _refuse_other_types(found, {*PAIRS, "within", "runs"})
    rates = [number for name in PAIRS for pair in getattr(found, name) for number in pair]
    for run in runs:
        _refuse_other_types(run)
        rates += [run.predicted, run.measured, run.tokens]
    if found.num_ranks < 1 or min([*rates, 1.0]) <= 0:
        raise ValueError("what is divided by is not above 0")
    return found


def _refuse_other_types(found: Calibration | PastRun, left_out: Collection[str] = ()) -> None:
    """Also numbers that are none, or below 0."""
    for name, kind in get_type_hints(type(found)).items():
        value = getattr(found, name)
        if name in left_out:
            continue
        if not is_a(value, kind) or (kind in (int, float) and not 0 <= value < math.inf):
            raise ValueError(f"{name} is {value!r}")


def _file(device: str, host: str, environment: Mapping[str, str]) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", f"{host} {device}".lower()).strip("-")
    return folder(environment) / f"{name}.json"
