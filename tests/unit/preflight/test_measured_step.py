"""What is said of a step's communication, by sums done by hand."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from allranks.cluster.measure.children import AllReduce, DeviceMeasured
from allranks.cluster.measure.values import Link, Measurements
from allranks.plan.step import PlannedStep
from allranks.preflight.check import Wanted
from allranks.preflight.measured_step import CHECKS
from tests.simulated_nodes import healthy

(CHECK,) = CHECKS
LINKS = [Link("a", "b", bytes_per_second=1e9), Link("b", "a", bytes_per_second=5e8)]
# 4 s over the slower link and 1 s at 1 TFLOP/s.
ZERO3 = PlannedStep("ZeRO-3", True, node_sends_bytes=2e9, flops=1e12, state_bytes=1e9)
DDP = PlannedStep("DDP", False, node_sends_bytes=2.5e8, flops=1e12, state_bytes=4e9)


def said(steps=(ZERO3, DDP), *, memory: float | None = None, **measured: Any) -> str:
    cluster = healthy(random.Random(1), num_nodes=2, kind="cpu")
    device = DeviceMeasured(0, "cpu", matmul_flops=1e12, done=True)
    known = {"links": LINKS, "devices": {node: [device] for node in cluster.nodes}, **measured}
    wanted = Wanted(nproc_per_node=2, device="cpu", backend="gloo", steps=steps)
    subject = replace(cluster.subject(), wanted=wanted, measured=Measurements(**known), num_processes={})
    if memory is not None:
        reports = {
            node: replace(report, memory=replace(report.memory, total=memory, cgroup_limit=None))
            for node, report in subject.reported
        }
        subject = replace(subject, reports=reports)
    [answer] = CHECK.look(subject)
    return answer.text


def test_each_strategys_share_is_told_over_the_slowest_link():
    text = said()
    assert "over the slowest link (4 Gbit/s by TCP): ZeRO-3 (this config) will spend 80% [75%] of each step" in text
    assert "(2.0 GB from each node in 4 s); DDP 33% [0%] (250.0 MB from each node in 500 ms)" in text
    assert "at most" in text.lower() and "1 TFLOP/s" in text


def test_an_all_reduce_of_the_ranks_counts_more_than_a_link():
    cluster_rate = AllReduce(2**25, 2**25 / 1e9, True)  # two ranks: each sends it once
    device = DeviceMeasured(0, "cpu", matmul_flops=1e12, all_reduces=[cluster_rate], done=True)
    text = said(devices={"a": [device]}, world_size=2)
    assert "at the 8 Gbit/s of the all-reduce of 34 MB: ZeRO-3 (this config) will spend 67% [50%]" in text


def test_what_does_not_fit_is_no_choice_and_the_configs_own_is_told_all_the_same():
    text = said(memory=6e9)
    assert "; DDP " not in text and "Too large for a rank's 3 GB: DDP (4 GB)" in text
    assert "ZeRO-3 (this config) will spend" in said(memory=1e9)


def test_without_a_matmul_only_bytes_are_told():
    text = said(devices={})
    assert "ZeRO-3 (this config) sends 2.0 GB from each node in 4 s; DDP sends" in text and "%" not in text


@pytest.mark.parametrize("seconds", [None, 6.0])
def test_what_the_run_before_has_counted_is_told_beside_it(seconds):
    text = said((), crossing_bytes=1e9, step_seconds=seconds)
    assert "the run before counted 1.0 GB that a node sends to others in a step: 2 s over the slowest link" in text
    assert ("its steps took 6 s in the median" in text) == (seconds is not None)


def test_what_is_not_known_is_skipped_with_the_reason():
    assert "not on this disk" in said(())
    assert said(links=()) == "no link was measured"
