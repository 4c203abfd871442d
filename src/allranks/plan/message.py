"""A plan for programs: one JSON object, in bytes and seconds."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from allranks.plan.cost import RunCost, checkpoint_bytes
from allranks.plan.error_bounds import MEMORY_ERROR, TIME_ERROR
from allranks.plan.report import Plan, Traced
from allranks.plan.table import Row


def to_json(plan: Plan) -> str:
    """What `allranks plan --json` prints; docs/plan.md has its fields."""
    machines = plan.machines
    return json.dumps(
        {
            "model": plan.model,
            "nodes": machines.num_nodes,
            "ranks_per_node": machines.ranks_per_node,
            "device": machines.device.name,
            "device_memory_bytes": machines.device.memory_bytes,
            "link": machines.link.name if machines.num_nodes > 1 else None,
            "lengths": {name: value for name, value in asdict(plan.lengths).items() if name != "sizes"},
            "rows": [_row(one) for one in plan.rows],
            "best": {
                "keys": dict(plan.lines),
                "replaces": list(plan.replaced),
                "deepspeed_changes": plan.best.deepspeed_changes,
                "run": _run(plan.cost),
            },
            "own": {"run": _run(plan.own_cost)},
            "scaling": [
                {
                    "nodes": one.num_nodes,
                    "same_batch": _row(one.same),
                    "growing_batch": _row(one.grown),
                    "speedup": one.speedup,
                    "efficiency": one.efficiency,
                    "growing_efficiency": one.grown_efficiency,
                }
                for one in plan.scaling
            ],
            "remedies": [
                {
                    "keys": dict(one.keys),
                    "deepspeed_changes": dict(one.deepspeed),
                    "otherwise": one.others,
                    "memory_bytes": one.memory.total,
                    "fits": one.is_enough,
                }
                for one in plan.remedies
            ],
            "traced": [_traced(one, plan) for one in plan.traced],
            "assumptions": list(plan.assumptions),
            "error_bounds": {"memory": MEMORY_ERROR, "time": TIME_ERROR},
        },
        indent=1,
    )


def _traced(one: Traced, plan: Plan) -> dict[str, Any]:
    memory = one.memory
    return {
        "of": "best" if one.row is plan.best else "own",
        "memory_bytes": None if memory is None else {**asdict(memory), "total": memory.total},
        "why_not": one.why_not,
    }


def _row(one: Row) -> dict[str, Any]:
    workload = one.workload
    return {
        "strategy": workload.name,
        "method": workload.method,
        "is_own": one.is_own,
        "micro_batch_size": one.batch.micro_batch_size,
        "accumulation": one.batch.accumulation,
        "effective_batch": one.batch.effective,
        "empty_places": one.batch.empty_places,
        "recomputes": workload.recomputes,
        "fits": one.fits,
        "is_certain": one.is_certain,
        "limit": one.limit,
        "memory_bytes": {**asdict(one.memory), "total": one.memory.total},
        "step_seconds": {**asdict(one.time), "total": one.time.total},
        "tokens_per_second": one.tokens_per_second,
        "mfu": one.mfu,
        "checkpoint_bytes": checkpoint_bytes(workload),
        "changes": dict(workload.changes),
        "deepspeed_changes": one.deepspeed_changes,
    }


def _run(run: RunCost | None) -> dict[str, Any] | None:
    return None if run is None else asdict(run)
