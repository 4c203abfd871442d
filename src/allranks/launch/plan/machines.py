"""The nodes that a plan is for: those that are asked for, or more of this machine."""

from __future__ import annotations

import datetime
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from allranks.cluster.gpus import count_gpus, installed_gpus
from allranks.errors import UsageError
from allranks.observe.enduring import say
from allranks.plan.hardware import Device, Link, find_device, find_link, find_reported
from allranks.plan.kept_calibration import load
from allranks.plan.table import Machines
from allranks.plan.this_cpu import this_cpu

_USUAL_GPUS, _USUAL_LINK = 8, "100gbit"


@dataclass(frozen=True)
class Asked:
    """What the command line says. `gpu`, `link`: names of plan/hardware.toml or of `device_file`."""

    num_nodes: int = 1
    gpus_per_node: int | None = None
    gpu: str | None = None
    link: str | None = None
    device_file: Path | None = None
    calibrates: bool = False
    traces: bool = False
    price_per_gpu_hour: float | None = None
    batch: int | None = None
    """Effective batch that is to be kept, in place of what the config says."""


def machines_of(asked: Asked, output_dir: Path | None = None) -> tuple[Machines, bool]:
    """The nodes, and whether their ranks are on CPUs: this machine's, where it has no GPU and none is named. What was
    measured of such a device on this machine counts.

    Raises ConfigError for names that are not known, UsageError where this machine's GPU is none that is.
    """
    link, on_cpu = _link(asked, output_dir), False
    if asked.gpu is not None:
        device, ranks = find_device(asked.gpu, asked.device_file), asked.gpus_per_node or _USUAL_GPUS
    elif number := count_gpus():
        device, ranks = _own_gpu(), asked.gpus_per_node or number
    else:
        on_cpu, ranks = True, asked.gpus_per_node or 1
        device = this_cpu(ranks)
    known = load(device.name)
    if asked.calibrates:
        if asked.gpu is not None:
            raise UsageError("--calibrate measures this machine's own device; leave out --gpu")
        # Only here: a plan answers at once.
        from allranks.launch.node.starters.memory import allocator_variables
        from allranks.launch.plan.whole_steps import measure_whole_steps
        from allranks.plan.calibrate import calibrate

        say(f"measuring {device.title}, which takes a minute or two", file=sys.stderr)
        environment = allocator_variables(0 if on_cpu else ranks)
        known = calibrate(device=device.name, num_ranks=ranks, environment=environment)
        if on_cpu:
            measure_whole_steps(ranks, known.num_threads)
            known = load(device.name)
    return Machines(asked.num_nodes, ranks, device, link, known), on_cpu


def _link(asked: Asked, output_dir: Path | None) -> Link:
    """What is asked for; else what the checks before a run in `output_dir` have measured between its nodes."""
    if asked.link is None and output_dir is not None and (measured := measured_link(output_dir)) is not None:
        return measured
    return find_link(_USUAL_LINK if asked.link is None else asked.link, asked.device_file)


def measured_link(output_dir: Path) -> Link | None:
    """What `allranks check` has measured between the nodes of runs in `output_dir`; None where it has not."""
    try:
        kept = json.loads((output_dir / "preflight.json").read_text(encoding="utf-8"))
        rate, latency = float(kept["link"]["bytes_per_second"]), float(kept["link"]["latency_seconds"])
        day = datetime.date.fromtimestamp(kept["t"]).isoformat()
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None
    if not (0 < rate < math.inf and 0 <= latency < math.inf):
        return None
    return Link("measured", f"the network that `allranks check` measured {day}", rate, latency, achieved=1.0)


def _own_gpu() -> Device:
    """This machine's first GPU, with the memory that its driver tells."""
    gpu = installed_gpus()[0]
    device = find_reported(gpu.model or "")
    if device is None:
        raise UsageError(
            f"this machine's GPU, {gpu.model}, is none that is known: name one that is like it by --gpu, or describe "
            "it in a --device-file"
        )
    return replace(device, memory_bytes=float(gpu.memory or device.memory_bytes))
