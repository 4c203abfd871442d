"""Limits as they really are of a process, read by the real probe: of locked memory, and of /dev/shm."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from allranks.cluster.node_report import NodeReport
from allranks.preflight.limits import CHECKS
from tests.simulated_nodes import healthy

PROBE = """
import json, sys
from allranks.cluster.probe import ProbeRequest, probe_this_node
print(json.dumps(probe_this_node(ProbeRequest()).to_message()))
"""


def probed(*before: str) -> NodeReport:
    done = subprocess.run([*before, sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return NodeReport.from_message(json.loads(done.stdout))


def found(check: str, **own: Any) -> list[str]:
    """What `check` says where the first node of healthy ones with InfiniBand has these of the probe's."""
    cluster = healthy(random.Random(3), num_nodes=2, kind="infiniband")
    cluster.want(nproc_per_node=8)
    subject = cluster.subject()
    node = subject.nodes[0]
    report = subject.reports[node]
    assert report is not None
    changed = replace(report, uid=1000, **own)
    (one,) = [each for each in CHECKS if each.id == check]
    answers = one.look(replace(subject, reports={**subject.reports, node: changed}))
    return [answer.text for answer in answers if answer.outcome == "found" and node in answer.nodes]


def test_a_limit_of_locked_memory_is_read_and_found() -> None:
    report = probed("prlimit", "--memlock=65536")
    assert report.limits.memlock == 65536
    assert found("limits.memlock", limits=report.limits) == ["a process may lock 65.5 kB of memory (ulimit -l)"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts in a namespace of its own, which takes root")
@pytest.mark.parametrize(("size", "texts"), [("64M", ["/dev/shm has 67.1 MB"]), ("2G", [])])
def test_the_size_of_shared_memory_is_read_and_found(size: str, texts: list[str]) -> None:
    mount = f'mount -t tmpfs -o size={size} tmpfs /dev/shm && exec "$@"'
    report = probed("unshare", "--mount", "sh", "-c", mount, "sh")
    assert found("limits.shm", shm=report.shm) == texts
