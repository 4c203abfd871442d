"""What node 0 judges, and what of it the other nodes hear."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from allranks.cluster.account import NodeAccount
from allranks.cluster.node_report import Address, NetworkInterface, NodeReport, System
from allranks.cluster.probe import ProbeRequest
from allranks.launch.preflight import together
from allranks.launch.preflight.text import of_start
from allranks.launch.preflight.together import Judged, Preflight
from allranks.preflight.check import Wanted
from allranks.preflight.judge import Policy
from allranks.rendezvous.hidden import Hidden


@dataclass(frozen=True)
class Node:
    host: str
    name: str


@dataclass
class Node0:
    """Stands in for node 0's rendezvous: the other nodes hand in what node 0 does, but for `others`."""

    others: dict[str, Any]
    hidden: Hidden | None = None
    nodes: tuple[Node, ...] = (Node("a", "node 0 (a)"), Node("b", "node 1 (b)"))
    heard: list[Any] = field(default_factory=list)

    def round(self, name, payload, deadline_seconds=None, *, decide):
        if isinstance(payload, float):
            return decide([payload, payload])
        other = {**payload, "report": reported("b", 2).to_message(), **self.others} if payload else None
        self.heard.append(decide([payload, other]))
        return self.heard[-1]


def reported(host: str, number: int) -> NodeReport:
    nic = NetworkInterface(name="eth0", state="up", carrier=True, addresses=(Address(f"10.0.0.{number}", 8),))
    system = System(boot_id=f"boot {number}")
    return NodeReport(version=1, host=host, time=time.time(), interfaces=(nic,), system=system)


@pytest.fixture
def report(monkeypatch) -> None:
    monkeypatch.setattr(together, "probe_this_node", lambda request: reported("a", 1))


def preflight(**policy: Any) -> Preflight:
    return Preflight(ProbeRequest(), Wanted(nproc_per_node=1, device="cpu", backend="gloo"), Policy(**policy))


ACCOUNT = NodeAccount(must_match={"learning_rate": "0.01"}, network={"GLOO_SOCKET_IFNAME": "eth0"})


def test_every_node_hears_what_node_0_found(report):
    node_0 = Node0({"must_match": {"learning_rate": "0.02"}})
    judged = preflight().together(node_0, ACCOUNT)
    heard = Judged.from_message(node_0.heard[-1])
    assert heard.judgement == judged.judgement and heard.is_refused and heard.hosts == ("a", "b")
    (finding,) = heard.judgement.findings("failed")
    assert finding.code == "parity.config" and "0.01" in finding.what and "0.02" in finding.what
    assert sorted(judged.reports) == ["a", "b"] and not heard.reports


def test_without_a_token_values_are_marks_on_the_others_and_no_check_takes_a_mark_for_a_value(report):
    node_0 = Node0({"must_match": {"learning_rate": "0.02"}}, Hidden())
    judged = preflight().together(node_0, ACCOUNT)
    heard = Judged.from_message(node_0.heard[-1])
    assert heard.is_hidden and heard.is_refused
    for one, shown in ((judged, True), (heard, False)):
        (finding,) = one.judgement.findings("failed")  # none of the interface that eth0's mark would be
        assert finding.code == "parity.config" and "learning_rate" in finding.what
        assert ("0.02" in finding.what) is shown


def test_what_is_accepted_is_shown_recorded_and_refuses_nothing(report):
    node_0 = Node0({"must_match": {"learning_rate": "0.02"}})
    judged = preflight(ignore={"parity.config"}).together(node_0, ACCOUNT)
    assert not judged.is_refused
    (kept,) = [one for one in judged.record()["findings"] if one["state"] == "accepted"]
    assert kept["code"] == "parity.config" and "accepted: " in of_start(judged)


@pytest.mark.parametrize("other", [None, [], {"report": 3}, {"report": None, "must_match": 7, "refusals": "x"}])
def test_a_node_that_says_nonsense_gave_no_report(report, other):
    node_0 = Node0({})
    node_0.round = lambda name, payload, deadline=None, *, decide: decide([payload, other])  # type: ignore[method-assign]
    judged = preflight().together(node_0, ACCOUNT)
    (finding,) = [one for one in judged.judgement.findings("warned") if one.code == "reach.node"]
    assert finding.what.startswith("b: ")
    assert not judged.is_refused, "it has met the others: what is not known of it is no fault"


def test_a_fault_of_ours_in_a_probe_that_does_not_end(monkeypatch):
    """The deadline is the probe's own; nobody waits for it beyond that."""
    monkeypatch.setattr(together, "_MARGIN_SECONDS", 0.0)
    monkeypatch.setattr(together, "probe_this_node", lambda request: time.sleep(1000))
    waiting = Preflight(ProbeRequest(deadline_seconds=0.05), Wanted(), Policy())
    assert waiting.report() is None
    assert [one.code for one in waiting.alone(ACCOUNT).judgement.findings("warned")] == ["reach.node"]


@pytest.mark.parametrize("said", [None, [], {}, {"hosts": "ab"}, {"hosts": ["a"], "nodes": []}])
def test_what_is_no_judgement(said):
    with pytest.raises(ValueError, match="judgement"):
        Judged.from_message(said)


def test_nodes_that_share_a_machine_may_share_its_address_and_its_name(report):
    """As the demo's do, and those of whoever tries a start of several nodes on one machine."""
    same = reported("a", 1).to_message() | {"names": {"a": ["127.0.0.1"]}}
    node_0 = Node0({"report": same}, nodes=(Node("a", "node 0 (a)"), Node("a", "node 1 (a)")))
    assert not preflight().together(node_0, ACCOUNT).judgement.findings("failed", "warned")
    apart = Node0({"report": same | {"system": {"boot_id": "another"}}}, nodes=node_0.nodes)
    assert preflight().together(apart, ACCOUNT).is_refused
