"""What is said of other networks and of adapters, each by itself: what the lists of cases have no place for."""

from __future__ import annotations

import random
from dataclasses import replace

from allranks.cluster.measure.values import Link, Measurements, TransportMeasured
from allranks.preflight.judge import Policy, judge
from allranks.preflight.judgement import Judgement
from allranks.preflight.measured_step import measured_link
from allranks.preflight.table import table
from tests.simulated_nodes import Cluster, healthy

GBIT = 1e9 / 8
IDS = ("measured.networks", "measured.faster-network", "measured.infiniband")


def cluster(kind: str, num_nodes: int = 4, **measured) -> Cluster:
    made = healthy(random.Random(7), num_nodes, kind)
    made.want(interface=None)
    made.measured = replace(made.have_measured(), others=(), without_rdma={})
    made.measured = replace(made.measured, **measured)
    return made


def judged(made: Cluster) -> Judgement:
    return judge(made.subject(), Policy(quick=False))


def said(made: Cluster) -> dict[str, list[tuple[str, str]]]:
    """Of each check, what it found and as what."""
    found: dict[str, list[tuple[str, str]]] = {name: [] for name in IDS}
    for one in judged(made).reported:
        if one.finding.code in found:
            found[one.finding.code].append((one.state, one.finding.what))
    return found


def reasons(made: Cluster, check: str) -> dict[str, list[str]]:
    (one,) = [one for one in judged(made).checked if one.id == check]
    return {state: [text for of, text in one.reasons if of == state] for state in one.nodes}


def between(nodes: list[str], gbits: float, interface: str) -> list[Link]:
    return [Link(a, b, interface, None, gbits * GBIT) for a in nodes for b in nodes if a != b]


def rail(nodes: list[str], gbits: float, name: str = "mlx5_0:1") -> TransportMeasured:
    return TransportMeasured("rdma", name, between(nodes, gbits, name))


def test_an_adapter_is_held_against_its_port_and_a_quick_one_does_not_hide_a_slow_one() -> None:
    """Two adapters of 400 Gbit/s: a mixture of both would find 300 usual, and neither far from it."""
    made = cluster("infiniband")
    for report in made.reports.values():
        first = report["infiniband"][0]
        report["infiniband"] = [first, {**first, "device": "mlx5_1"}]
    rails = [rail(made.nodes, 390), rail(made.nodes, 210, "mlx5_1:1")]
    made.measured = replace(made.measured, others=rails)
    [(state, text)] = said(made)["measured.infiniband"]
    assert state == "warned" and "by ib_write_bw over mlx5_1:1, links carry 52% of the rate of their ports" in text


def test_of_two_nodes_the_slow_direction_is_told() -> None:
    made = cluster("infiniband", 2)
    a, b = made.nodes
    links = [Link(a, b, "mlx5_0:1", None, 380 * GBIT), Link(b, a, "mlx5_0:1", None, 60 * GBIT)]
    made.measured = replace(made.measured, others=[TransportMeasured("rdma", "mlx5_0:1", links)])
    [(state, text)] = said(made)["measured.infiniband"]
    assert state == "failed" and f"from {b} to {a} (mlx5_0:1) 60 Gbit/s come through, 15% of the 400 Gbit/s" in text


def test_infiniband_of_qdr_carries_four_fifths_of_its_rate_and_roce_all_of_it() -> None:
    """40 Gbit/s with 10 bits for 8: 31 Gbit/s are sound there, and are not on Ethernet of 40 Gbit/s."""
    for kind, told in (("infiniband", []), ("roce", ["warned"])):
        made = cluster(kind)
        for report in made.reports.values():
            report["infiniband"][0]["rate_gbits"] = 40.0
        made.measured = replace(made.measured, others=[rail(made.nodes, 31)])
        assert [state for state, _ in said(made)["measured.infiniband"]] == told


def test_who_lacks_the_program_is_skipped_by_name_and_the_others_are_judged() -> None:
    why = "ib_write_bw is not installed (package perftest)"
    made = cluster("infiniband")
    *others, without = made.nodes
    made.measured = replace(made.measured, others=[rail(others, 380)], without_rdma={without: why})
    assert said(made)["measured.infiniband"] == []
    assert reasons(made, "measured.infiniband") == {"skipped": [f"{without}: {why}"], "ok": []}
    assert any(f"skipped:    measured.infiniband on {without}: " in line for line in table(judged(made)))


def test_of_two_nodes_the_one_that_lacks_the_program_is_named() -> None:
    why = "ib_write_bw is not installed (package perftest)"
    made = cluster("infiniband", 2)
    made.measured = replace(made.measured, without_rdma={made.nodes[1]: why})
    told = reasons(made, "measured.infiniband")
    assert told == {"skipped": [f"{made.nodes[1]}: {why}", "no other node could be measured with it"]}


def test_what_fails_on_all_adapters_is_told_once_and_refuses_nothing() -> None:
    made = cluster("infiniband")
    why = "ib_write_bw: Couldn't allocate MR"
    failed = [replace(link, bytes_per_second=None, failed=why) for link in between(made.nodes, 1, "")]
    rails = [TransportMeasured("rdma", f"mlx5_{number}:1", failed) for number in range(8)]
    made.measured = replace(made.measured, others=rails)
    [(state, text)] = said(made)["measured.infiniband"]
    assert state == "warned" and why in text and "mlx5_0:1, mlx5_1:1, mlx5_2:1 and 5 more" in text


def test_without_nccl_adapters_are_notes() -> None:
    made = cluster("cpu")
    port = {"device": "mlx5_0", "port": 1, "state": "ACTIVE", "rate_gbits": 100.0, "link_layer": "InfiniBand"}
    for report in made.reports.values():
        report["infiniband"] = [port]
    made.measured = replace(made.measured, others=[rail(made.nodes, 10)])
    assert [state for state, _ in said(made)["measured.infiniband"]] == ["noted"]


def test_a_network_that_not_all_nodes_have_or_that_fails_is_no_choice() -> None:
    made = cluster("cpu")
    rate = 10 * max(one.bytes_per_second for one in made.measured.links) / GBIT
    some = TransportMeasured("tcp", "10.1.0.0/24", between(made.nodes[:3], rate, "ens2"))
    cut = [*between(made.nodes, rate, "ens3")[1:], Link(made.nodes[0], made.nodes[1], "ens3", failed="timed out")]
    made.measured = replace(made.measured, others=[some, TransportMeasured("tcp", "10.2.0.0/24", cut)])
    found = said(made)
    assert found["measured.faster-network"] == []
    slow = [replace(one, failed="", bytes_per_second=1e6 if one.failed else one.bytes_per_second) for one in cut]
    lame = replace(made.measured, others=[TransportMeasured("tcp", "10.2.0.0/24", slow)])
    assert said(replace(made, measured=lame))["measured.faster-network"] == []
    [(state, text)] = found["measured.networks"]
    assert state == "noted" and "over 10.2.0.0/24, nothing could be measured" in text
    assert "the nodes share no network" in reasons(cluster("cpu"), "measured.networks")["skipped"][0]


def test_the_quicker_network_is_named_with_both_rates_and_what_to_set() -> None:
    made = cluster("cpu")
    own = between(made.nodes, 0.94, "eno1")
    quick = TransportMeasured("tcp", "10.1.0.0/24", between(made.nodes, 24, "ens2"))
    made.measured = replace(made.measured, links=own, others=[quick])
    [one] = [one for one in judged(made).reported if one.finding.code == "measured.faster-network"]
    assert "the ranks use eno1 (940 Mbit/s), and ens2 (10.1.0.0/24) carries 24 Gbit/s" in one.finding.what
    assert "`network.interface: ens2`" in one.finding.remedy and one.state == "warned"


def test_a_network_that_nccl_uses_too_is_no_other_choice() -> None:
    """Without a pattern NCCL sends over all interfaces that are no loopback or docker's."""
    made = cluster("ethernet")
    for number, (node, report) in enumerate(made.reports.items()):
        report["environment"].pop("NCCL_SOCKET_IFNAME", None)
        made.network.get(node, {}).pop("NCCL_SOCKET_IFNAME", None)
        address = {"address": f"10.1.0.{number + 1}", "prefix": 24}
        report["interfaces"].append({"name": "ens2", "state": "up", "carrier": True, "addresses": [address]})
    own = between(made.nodes, 0.94, "eno1")
    quick = TransportMeasured("tcp", "10.1.0.0/24", between(made.nodes, 24, "ens2"))
    made.measured = replace(made.measured, links=own, others=[quick])
    assert said(made)["measured.faster-network"] == []
    made.want(interface="=eno1")
    assert [state for state, _ in said(made)["measured.faster-network"]] == ["warned"]


def test_a_steps_communication_is_reckoned_over_what_the_ranks_use() -> None:
    own = [Link("a", "b", "eno1", 1e-4, 1e8), Link("b", "a", "eno1", 1e-4, 1e8)]
    others = [TransportMeasured("tcp", "10.1.0.0/24", between(["a", "b"], 24, "ens2")), rail(["a", "b"], 390)]
    measured = Measurements(links=own, others=others)
    assert (
        measured_link(measured)
        == measured_link(replace(measured, others=()))
        == {
            "bytes_per_second": 1e8,
            "latency_seconds": 1e-4,
        }
    )


def test_what_was_left_out_for_time_is_not_known() -> None:
    made = cluster("infiniband", others=[TransportMeasured("rdma", "mlx5_0:1", skipped="others had taken the 120 s")])
    assert reasons(made, "measured.infiniband") == {"unknown": ["others had taken the 120 s"]}


def test_each_transport_has_a_picture_of_its_own_and_it_crosses_the_wire() -> None:
    made = cluster("infiniband")
    slow = made.nodes[1]
    links = [
        replace(one, bytes_per_second=0.7 * one.bytes_per_second) if one.source == slow else one
        for one in rail(made.nodes, 390).links
    ]
    sound = TransportMeasured("tcp", "10.1.0.0/24", between(made.nodes, 24, "ens2"))
    made.measured = replace(made.measured, others=[sound, TransportMeasured("rdma", "mlx5_0:1", links)])
    one = judged(made)
    assert one.rates is None and list(one.transports) == ["mlx5_0:1"]
    assert one.transports["mlx5_0:1"].cells == (" ...", "3 33", ".. .", "... ")
    read = Judgement.from_message(one.to_message())
    assert read.transports == one.transports
    assert Judgement.from_message({**one.to_message(), "transports": [7, {"x": 1}]}).transports == {}
    assert "over mlx5_0:1:" in table(one)
