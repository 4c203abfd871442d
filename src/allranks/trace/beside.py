"""The traced memory of rows of a plan, beside their closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from allranks.config import RunConfig
from allranks.config.load import resolve_mapping
from allranks.errors import AllranksError
from allranks.plan.held_memory import held
from allranks.plan.memory import at_step
from allranks.plan.report import Traced
from allranks.plan.reserve import reserve
from allranks.plan.table import Row
from allranks.plan.workload import RankMemory
from allranks.trace.asked import OPTIMIZERS
from allranks.trace.traced import traced_memory


def traced(row: Row, cfg: RunConfig, config_json: Mapping[str, Any], *, tokens: int) -> Traced:
    """What running `row` of the plan of `cfg` without values tells; `tokens` are those of a row of a micro-batch.

    The driver's share, the host's memory, and the state and the step of libraries' optimizers, which no trace sees, are
    those of the closed form.
    """
    workload = row.workload
    changed = _changed(cfg, workload.changes)
    try:
        memory = traced_memory(
            changed,
            config_json,
            num_ranks=workload.num_ranks,
            ranks_per_node=workload.ranks_per_node,
            micro_batch_size=workload.micro_batch_size,
            num_micro_batches=workload.num_micro_batches,
            lengths=(tokens,) * workload.micro_batch_size,
            labelled=workload.labelled,
            on_cpu=workload.on_cpu,
        )
    except AllranksError as error:
        return Traced(row, None, str(error))
    if changed.optimizer.optimizer not in OPTIMIZERS:
        with_state = replace(memory, optimizer=held(workload).optimizer)
        memory = max(with_state, at_step(workload), key=lambda moment: moment.total)
    return Traced(row, _whole(memory, row))


def _changed(cfg: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    if not changes:
        return cfg
    keys = {**cfg.flat(), **changes}
    return resolve_mapping({key: value for key, value in keys.items() if value is not None})


def _whole(memory: RankMemory, row: Row) -> RankMemory:
    # What a process on a CPU takes beside its tensors earlier runs say, if anything does.
    on_cpu = row.workload.on_cpu
    beside = row.memory.reserve if on_cpu else reserve(row.workload, memory.total, row.device)
    return replace(memory, reserve=beside, host=row.memory.host)
