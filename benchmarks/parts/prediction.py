"""What `allranks plan` says of a run before it is made: seconds a step and memory, of the config that is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allranks.config.load import resolve_mapping
from allranks.plan.config_workload import own_workload
from allranks.plan.hardware import Device, find_reported
from allranks.plan.memory import rank_memory
from allranks.plan.time import step_time
from benchmarks.measure import allranks_config
from benchmarks.workload import Workload, model_config


@dataclass(frozen=True)
class Prediction:
    """Of one rank, without a calibration. `memory_bytes`: of tensors, as torch counts what is allocated."""

    step_seconds: float
    memory_bytes: float


def predicted(workload: Workload, changes: Mapping[str, Any], device_name: str | None = None) -> Prediction | None:
    """For `workload` with the keys `changes`; None where the plan does not know the device.

    `device_name`: as torch reports it; this machine's, if not given.
    """
    device = _device(device_name)
    if device is None:
        return None
    keys = allranks_config(workload, Path("workload"), Path("scratch")) | dict(changes)
    # Rows are packed full but for little, and so much of each document has a label.
    own = own_workload(
        resolve_mapping(keys),
        model_config(workload).to_dict(),
        num_nodes=1,
        gpus_per_node=1,
        on_cpu=False,
        labelled=workload.target_share,
    )
    memory = rank_memory(own, device)
    return Prediction(step_time(own, device).total, memory.total - memory.reserve)


def _device(name: str | None) -> Device | None:
    if name is None:
        import torch

        name = torch.cuda.get_device_name()
    return find_reported(name)
