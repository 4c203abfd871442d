"""Which interface ranks without NCCL will use, where nothing names one."""

from __future__ import annotations

from allranks.cluster.node_report import NodeReport
from allranks.preflight.check import Subject, Wanted
from allranks.preflight.ranks_interface import chosen_interfaces


def chosen(*interfaces: dict, master: str = "10.0.0.1") -> list[str | None] | None:
    report = NodeReport.from_message({"interfaces": [{"state": "up", "kind": "physical", **one} for one in interfaces]})
    subject = Subject(
        reports={"node1": report}, starting="node1", wanted=Wanted(device="cpu", backend="gloo", master_addr=master)
    )
    choice = chosen_interfaces(subject)["node1"]
    return None if choice is None else [one.name for one in choice[1]]


MANAGEMENT = {"name": "eth0", "default_route": True, "addresses": [{"address": "192.168.0.2", "prefix": 24}]}


def test_a_fabric_whose_nodes_are_routed_to_is_not_taken_for_the_default_route():
    routed = {"name": "eth1", "addresses": [{"address": "10.0.0.2", "prefix": 32}]}
    assert chosen(MANAGEMENT, routed) is None
    assert chosen(MANAGEMENT, {**routed, "state": "down"}) == ["eth0"]
    assert chosen(MANAGEMENT, {**routed, "kind": "virtual"}) == ["eth0"]  # a container's network


def test_a_cloud_that_gives_each_machine_a_network_by_itself_has_one_card():
    assert chosen({**MANAGEMENT, "addresses": [{"address": "10.0.0.2", "prefix": 32}]}) == ["eth0"]


def test_the_network_of_the_master_goes_before_the_default_route():
    assert chosen(MANAGEMENT, {"name": "eth1", "addresses": [{"address": "10.0.0.2", "prefix": 24}]}) == ["eth1"]
