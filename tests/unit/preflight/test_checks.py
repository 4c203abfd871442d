"""Each check by its cases: a fault of one node in a healthy cluster, and what is nearly that and must pass."""

import random

import pytest

from allranks.preflight.catalogue import CHECKS
from allranks.preflight.folding import natural
from allranks.preflight.judge import Policy, judge
from tests.simulated_nodes import healthy
from tests.unit.preflight import cases, fabric_cases, measured_cases

SEEDS = 3
CASES = [*cases.CASES, *fabric_cases.CASES, *measured_cases.CASES]
WHOLE = Policy(quick=False)
STATE = {"error": "failed", "warning": "warned", "note": "noted"}
NUMBERED = [pytest.param(case, number, id=f"{case.check}-{number}") for number, case in enumerate(CASES)]


def cluster_for(case, seed):
    rng = random.Random(f"{case.check} {seed}")
    cluster = healthy(rng, rng.choice((3, 5, 9)), case.kind)
    cluster.want(**(case.wanted or {}))
    return cluster, rng.choice(cluster.nodes)


@pytest.mark.parametrize(("case", "number"), NUMBERED)
def test_a_fault_is_found_and_names_its_node_only(case, number):
    for seed in range(SEEDS):
        fault_is_found(case, (number, seed))


def fault_is_found(case, seed):
    cluster, node = cluster_for(case, seed)
    case.fault(cluster, node)
    judged = judge(cluster.subject(), WHOLE)
    worse = [one for one in judged.reported if one.state in ("failed", "warned")]
    mine = [one for one in judged.reported if one.finding.code == case.check]
    named = tuple(sorted({node, case.also(cluster, node)} if case.also else {node}, key=natural))
    named = tuple(sorted(cluster.nodes, key=natural)) if case.all_nodes else named
    assert [(one.nodes, one.state) for one in mine] == [(named, STATE[case.severity])], judged.reported
    assert case.found in mine[0].finding.what
    assert mine[0].finding.remedy
    assert [one for one in worse if one not in mine] == []
    assert judged.is_refused == (case.severity == "error")
    assert judged.failing == (named if case.severity == "error" else ())


@pytest.mark.parametrize(("case", "number"), NUMBERED)
def test_what_is_nearly_a_fault_passes(case, number):
    for seed in range(SEEDS):
        near_miss_passes(case, (number, seed))


def near_miss_passes(case, seed):
    cluster, node = cluster_for(case, seed)
    case.near_miss(cluster, node)
    judged = judge(cluster.subject(), WHOLE)
    assert judged.findings("failed", "warned") == []
    if case.severity == "note":
        assert case.check not in {finding.code for finding in judged.findings()}


def test_every_check_has_its_cases():
    assert {case.check for case in CASES} == {check.id for check in CHECKS}


def test_what_checks_say_of_themselves_is_whole():
    assert len({check.id for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.what and check.why and check.remedy and check.false_alarm, check.id
        assert check.id == check.id.lower() and check.id.count(".") == 1
