"""The one list of all checks, in the order in which they are shown."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from allranks.preflight import (
    clock,
    connections,
    disks,
    environment,
    fabric,
    gpu_direct,
    gpu_health,
    gpus,
    limits,
    measured,
    measured_devices,
    measured_step,
    measured_transports,
    names,
    parity,
    planned_memory,
    reach,
    reports,
    roce,
    software,
)
from allranks.preflight.check import Check

CHECKS: tuple[Check, ...] = (
    *reports.CHECKS,
    *names.CHECKS,
    *reach.CHECKS,
    *connections.CHECKS,
    *parity.CHECKS,
    *software.CHECKS,
    *environment.CHECKS,
    *limits.CHECKS,
    *disks.CHECKS,
    *clock.CHECKS,
    *fabric.CHECKS,
    *roce.CHECKS,
    *gpu_direct.CHECKS,
    *gpus.CHECKS,
    *gpu_health.CHECKS,
    *planned_memory.CHECKS,
    *measured.CHECKS,
    *measured_transports.CHECKS,
    *measured_step.CHECKS,
    *measured_devices.CHECKS,
)
CERTIFICATE = "certificate.differs"
"""What a start differs in from what a smoke run proved: found on no node's report, but once the data is prepared."""
FAMILIES: tuple[str, ...] = tuple(dict.fromkeys(check.family for check in CHECKS))


def named(names: Iterable[str]) -> frozenset[str]:
    """The names, if each is a check's id or a family. Raises ValueError, which names the nearest, for another."""
    known = {*FAMILIES, *(check.id for check in CHECKS), CERTIFICATE, CERTIFICATE.partition(".")[0]}
    chosen = frozenset(names)
    for name in sorted(chosen - known):
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; families: {', '.join(FAMILIES)}"
        raise ValueError(f"there is no check {name!r}{hint}")
    return chosen
