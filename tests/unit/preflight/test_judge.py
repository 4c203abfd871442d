"""Properties of the whole judgement, on clusters drawn at random."""

import json
import random

import pytest

from allranks.preflight import catalogue
from allranks.preflight.check import Check, Subject, found
from allranks.preflight.judge import Policy, judge
from allranks.preflight.judgement import Judgement
from tests.simulated_nodes import healthy
from tests.unit.preflight.cases import CASES


def test_a_thousand_healthy_clusters_give_no_error_and_no_warning():
    for seed in range(1000):
        judged = judge(healthy(random.Random(seed)).subject())
        assert judged.findings("failed", "warned") == [], f"seed {seed}"
        assert judged.passing == judged.nodes
        ended = [answer for one in judged.checked for _, answer in one.reasons if answer.startswith("the check")]
        assert ended == []


def seen(judged):
    """What was found and of whom, without the order."""
    return {(one.finding.code, one.state, one.finding.what, one.nodes) for one in judged.reported}


def failures(judged):
    return {(one.finding.code, node) for one in judged.reported if one.state == "failed" for node in one.nodes}


def faulty(seed, num_nodes=None):
    rng = random.Random(seed)
    case = rng.choice(CASES)
    cluster = healthy(rng, num_nodes or rng.choice((2, 3, 4, 6)), case.kind)
    cluster.want(**(case.wanted or {}))
    for node in rng.sample(cluster.nodes, rng.choice((1, 1, 2))):
        case.fault(cluster, node)
    return cluster, rng


@pytest.mark.parametrize("seed", range(60))
def test_the_order_of_nodes_does_not_matter(seed):
    cluster, rng = faulty(seed)
    before = seen(judge(cluster.subject()))
    nodes = rng.sample(cluster.nodes, len(cluster.nodes))
    cluster.starting = cluster.starting or cluster.nodes[0]
    cluster.reports = {node: cluster.reports[node] for node in nodes}
    for table in (cluster.must_match, cluster.network):
        items = list(table.items())
        table.clear()
        table.update(rng.sample(items, len(items)))
    assert seen(judge(cluster.subject())) == before


@pytest.mark.parametrize("seed", range(60))
def test_a_healthy_node_more_never_adds_a_failure(seed):
    """Taken away in place of added: the node without which there are fewer must not have brought a failure."""
    cluster, rng = faulty(seed, num_nodes=random.Random(seed).choice((3, 4, 5, 7)))
    with_it = judge(cluster.subject())
    untouched = [node for node in cluster.nodes if node not in with_it.failing and node != cluster.starting]
    if not untouched:
        return
    extra = rng.choice(untouched)
    del cluster.reports[extra]
    for table in (cluster.must_match, cluster.network, cluster.clocks or {}, cluster.earlier):
        table.pop(extra, None)
    assert failures(with_it) <= failures(judge(cluster.subject()))


@pytest.mark.parametrize("seed", range(60))
def test_a_node_without_a_report_is_one_failure_and_unknown_elsewhere(seed):
    rng = random.Random(seed)
    cluster = healthy(rng, rng.choice((2, 3, 5, 9)))
    node = rng.choice(cluster.nodes)
    cluster.reports[node] = None
    for table in (cluster.must_match, cluster.network, cluster.clocks or {}, cluster.earlier):
        table.pop(node, None)
    cluster.pairs = None
    judged = judge(cluster.subject())
    assert [(one.finding.code, one.nodes, one.state) for one in judged.reported if one.state != "noted"] == [
        ("reach.node", (node,), "failed")
    ]
    for one in judged.checked:
        states = {state for state, nodes in one.nodes.items() if node in nodes}
        assert states <= {"unknown", "failed", "skipped"}, one.id


def test_a_policy_makes_warnings_fail_accepts_findings_and_skips_checks():
    def look(subject):
        return [found(subject.nodes, "it is odd")]

    check = Check("made.up", "w", "y", "r", "warning", "f", look)
    subject = Subject({"a": None, "b": None})

    def state(**policy):
        judged = judge(subject, Policy(**{name: frozenset(names) for name, names in policy.items()}), [check])
        return [one.state for one in judged.reported], judged.is_refused

    assert state() == (["warned"], False)
    assert state(strict={"made.up"}) == (["failed"], True)
    assert state(strict={"made"}) == (["failed"], True)
    assert state(ignore={"made"}, strict={"made"}) == (["accepted"], False)
    assert state(skip={"made.up"}) == ([], False)
    assert state(ignore={"other.check"}) == (["warned"], False)


def test_names_of_checks_are_known_or_refused_with_the_nearest():
    assert catalogue.named(["limits", "clock.spread"]) == {"limits", "clock.spread"}
    with pytest.raises(ValueError, match=r"no check 'limits.memlok'; did you mean limits.memlock\?"):
        catalogue.named(["limits.memlok"])


def test_a_check_that_breaks_leaves_the_others_standing():
    def look(subject):
        raise KeyError("odd")

    broken = Check("made.up", "w", "y", "r", "error", "f", look)
    judged = judge(Subject({"a": None}), checks=[broken, *catalogue.CHECKS])
    assert judged.checked[0].nodes == {"unknown": ("a",)}
    assert "KeyError" in judged.checked[0].reasons[0][1]
    assert len(judged.checked) == 1 + len(catalogue.CHECKS)


@pytest.mark.parametrize("seed", range(20))
def test_a_judgement_crosses_to_other_nodes_as_json(seed):
    judged = judge(faulty(seed)[0].subject())
    told = json.loads(json.dumps(judged.to_message()))
    assert Judgement.from_message(told) == judged
    assert told["refused"] == judged.is_refused


@pytest.mark.parametrize("message", [None, [], {}, {"nodes": "a"}, {"nodes": [1, None]}])
def test_what_is_no_judgement_is_refused(message):
    with pytest.raises(ValueError, match="a judgement"):
        Judgement.from_message(message)


def test_a_judgement_of_a_stranger_does_no_harm():
    told = {
        "nodes": ["a\x1b[31m", "b", 7],
        "findings": [None, {"code": "x"}, {"code": "x", "what": "y", "state": "failed", "nodes": ["b", "c", None]}],
        "checks": [7, {"id": "x.y", "state": "made up"}, {"id": "x.y", "state": "ok", "but": {"failed": ["c", "b"]}}],
    }
    judged = Judgement.from_message(told)
    assert judged.nodes == ("a\ufffd[31m", "b")
    assert judged.is_refused and judged.failing == ("b",)
    assert [dict(one.nodes) for one in judged.checked] == [{"failed": ("b",), "ok": ("a\ufffd[31m",)}]
