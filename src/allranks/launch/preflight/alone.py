"""A node that meets no other: is the memory of its ranks enough? Nothing else of the checks is asked there."""

from __future__ import annotations

import os
import socket
import sys

import psutil

from allranks.cluster.gpus import installed_gpus
from allranks.cluster.memory import memory_limit
from allranks.cluster.node_report import GpuSystem, Memory, NodeReport
from allranks.config import RunConfig
from allranks.errors import RefusedError
from allranks.launch.preflight.asked import is_skipped, policy_of, wanted_of
from allranks.launch.preflight.deadline import Beside
from allranks.launch.preflight.sizes import expected
from allranks.launch.preflight.text import findings
from allranks.launch.preflight.together import Judged
from allranks.launch.spec.options import Launch
from allranks.observe import say
from allranks.plan.fit import Expected
from allranks.preflight.check import Subject
from allranks.preflight.judge import judge
from allranks.preflight.planned_memory import CHECKS

_SECONDS = 10.0
"""To read a model's config.json and what is known of its files: a mount may not answer."""


def refuse_too_large(cfg: RunConfig, launch: Launch) -> None:
    """Say what is predicted of a rank's memory where that may not be enough. Raises RefusedError where it cannot be."""
    if is_skipped(cfg) or not cfg.plan.predicts:
        return
    will = Beside(lambda: _expected(cfg, launch)).result(_SECONDS)
    if will is None:
        return
    host = socket.gethostname()
    subject = Subject(reports={host: _report(launch)}, starting=host, wanted=wanted_of(cfg, launch, expected=will))
    judged = Judged(judge(subject, policy_of(cfg, quick=True), CHECKS), [host], 0.0)
    if judged.is_refused:
        raise RefusedError("\n".join(findings(judged, "failed")))
    for line in findings(judged, "warned", "accepted"):
        say(line, file=sys.stderr)


def _expected(cfg: RunConfig, launch: Launch) -> Expected | None:
    return expected(cfg, num_nodes=launch.max_nodes, num_processes=launch.nproc_per_node, on_cpu=launch.num_gpus == 0)


def _report(launch: Launch) -> NodeReport:
    """What this node has, without the probe's other questions."""
    limit = memory_limit()
    memory = Memory(total=psutil.virtual_memory().total, cgroup_limit=limit.num_bytes if limit else None)
    gpus = installed_gpus() if launch.num_gpus else ()
    return NodeReport(gpus=gpus, gpu_system=GpuSystem(visible=os.environ.get("CUDA_VISIBLE_DEVICES")), memory=memory)
