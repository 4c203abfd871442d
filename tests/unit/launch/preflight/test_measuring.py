"""What nodes tell of their links comes from the wire: nonsense is left out, or refused by name."""

from __future__ import annotations

import pytest

from allranks.cluster.measure.perftest import Adapter, Tool
from allranks.cluster.measure.tcp import Measured
from allranks.cluster.node_report import NodeReport
from allranks.cluster.rank_addresses import RankAddress
from allranks.errors import RefusedError
from allranks.launch.preflight import rdma_transports
from allranks.launch.preflight.measuring_links import Links, _better, _disjoint, _pairs
from allranks.launch.preflight.measuring_others import measure_others
from allranks.launch.preflight.rdma_transports import NO_PORT, OwnRails, own_rails, shared_rails, why_without
from allranks.launch.preflight.tcp_transports import NetworkTransport, RanksTransport, offered_networks, shared_networks


class Rendezvous:
    """Of node 0, where all rounds are decided."""

    class terms:
        token = "t"

    class own:
        node_rank = 0

    def round(self, name, payload, deadline_seconds=None, *, decide=None):
        return decide([payload])


OFFER = {"nonce": "n", "at": [{"address": "10.0.0.1", "port": 4000, "library": "gloo"}]}


def links(num_nodes=3):
    transport = RanksTransport([], [OFFER] * num_nodes, "t")
    return Links(Rendezvous(), [f"node{n}" for n in range(num_nodes)], transport)


def test_only_what_can_be_a_measurement_is_taken():
    found = links()
    nonsense = [7, [1], [9, "eth0", 1, 1, ""], [True, None, 1, 1, ""], "x"]
    found._take([[[1, "eth0", 1e-4, 1e9, ""], *nonsense], None, [[0, "eth0", float("nan"), -1, "\x1b[0m"]]])
    (first, second) = [one for one in found.best() if one.interface == "eth0"]
    assert (first.source, first.target, first.latency_seconds, first.bytes_per_second) == ("node0", "node1", 1e-4, 1e9)
    assert (second.source, second.latency_seconds, second.bytes_per_second) == ("node2", None, None)
    assert "\x1b" not in second.failed


def test_of_a_link_that_failed_the_other_ends_words_are_told_too():
    found = links()
    found._take([[[1, "mlx5_0:1", None, None, "Couldn't connect"]], [[0, "mlx5_0:1", 1e-6, 1e9, ""]], None])
    for target, source in ((1, 0), (0, 1), (1, "x")):
        found._take_why(source, target, "Couldn't allocate MR")
    assert [one.failed for one in found.best()] == ["Couldn't connect; on node1 Couldn't allocate MR", ""]


def test_the_better_of_two_tries_counts():
    slow, quick, failed = Measured(2e-4, 1e6), Measured(3e-4, 1e9), Measured(failed="timed out")
    assert _better(slow, quick) == _better(quick, slow) == Measured(2e-4, 1e9)
    assert _better(failed, slow) == _better(slow, failed) == slow
    assert _better(failed, failed) == failed


def test_what_is_tried_again_shares_no_node_at_a_time():
    pairs = [(0, 1), (0, 2), (1, 2), (3, 4)]
    rounds = _disjoint(pairs)
    assert sorted(pair for one in rounds for pair in one) == pairs
    assert all(len({n for pair in one for n in pair}) == 2 * len(one) for one in rounds)


@pytest.mark.parametrize("said", [None, 7, [[0, 1], [1, 2]], [[0, 9]], [[-1, 0]], [["a", 1]], [[0]]])
def test_rounds_that_cannot_be(said):
    with pytest.raises(RefusedError, match="node 0"):
        _pairs(said, 3)


@pytest.mark.parametrize(
    "offer", [None, {}, {"nonce": "n", "at": [{}]}, {"nonce": "n", "at": [{"address": 1, "port": "x"}]}]
)
def test_an_offer_that_is_none(offer):
    with pytest.raises(RefusedError, match="node 1"):
        RanksTransport([], [OFFER, offer], "t")


def nic(name, address, *, kind="physical", prefix=24, state="up", **more):
    return {"name": name, "state": state, "kind": kind, "addresses": [{"address": address, "prefix": prefix}], **more}


RANKS = [RankAddress("127.0.0.1", "eth0", "gloo")]


def offered(*nics):
    own = nic("eth0", "127.0.0.1", prefix=28)
    found, receivers = offered_networks(NodeReport.from_message({"interfaces": [own, *nics]}), RANKS, b"s" * 32)
    for one in receivers:
        one.close()
    return [(one["network"], one["interface"]) for one in found]


def test_networks_are_offered_that_may_join_nodes_and_no_others():
    """Addresses of 127.0.0.0/8, which this machine has all of."""
    assert offered(nic("net1", "127.4.0.1", kind="virtual"))  # as Kubernetes gives pods a second one
    assert offered(nic("ens2", "127.1.0.1"), nic("ib0", "127.2.0.1", kind="infiniband", prefix=16)) == [
        ("127.1.0.0/24", "ens2"),
        ("127.2.0.0/16", "ib0"),
    ]
    assert (
        offered(
            nic("lo", "127.9.0.1", kind="loopback"),
            nic("br0", "127.3.0.1", kind="bridge"),
            nic("docker_gwbridge", "127.5.0.1"),
            nic("usb0", "127.6.0.1"),
            nic("ens3", "127.7.0.1", state="down"),
            nic("ens4", "127.0.0.2"),  # where the ranks are: the kernel chooses there
            nic("ens5", "127.8.0.1", prefix=32),
            nic("ens6", "fe80::1", prefix=64),
            nic("ens7", "192.0.2.1"),  # gone in between: nobody can listen there
        )
        == []
    )
    assert offered_networks(None, RANKS, b"s" * 32) == ([], [])
    assert len(offered(*(nic(f"ens{n}", f"127.1.{n}.1") for n in range(20)))) == 8


def network(address, name="10.1.0.0/24", port=4000, interface="ens2"):
    return {"network": name, "address": address, "port": port, "interface": interface}


def shared(*of_nodes, ranks="10.0.0."):
    offers = [
        {"nonce": "n", "at": [{"address": f"{ranks}{node}", "port": 1, "library": "gloo"}], "networks": networks}
        for node, networks in enumerate(of_nodes)
    ]
    transports = shared_networks(offers, 0, "t")
    assert all(isinstance(transport, NetworkTransport) for transport in transports)
    return {transport.name: list(transport.nodes) for transport in transports}


def test_a_network_is_shared_by_nodes_that_have_an_address_of_their_own_in_it():
    assert shared([network("10.1.0.1")], [network("10.1.0.2")], []) == {"10.1.0.0/24": [0, 1]}
    # As hypervisors make one for each machine by itself.
    assert shared([network("10.1.0.15")], [network("10.1.0.15")]) == {}
    assert shared([network("10.1.0.1")], []) == {}
    # Other nodes' ranks use it.
    assert shared([network("10.1.0.1")], [network("10.1.0.2")], ranks="10.1.0.") == {}
    many = [[network(f"10.{n}.0.{node}", f"10.{n}.0.0/24") for n in range(1, 9)] for node in (1, 2)]
    assert len(shared(*many)) == 4


@pytest.mark.parametrize(
    "nonsense",
    [
        *(None, 7, "x", [7], [{}], [{"network": "x", "address": "10.1.0.2", "port": 1}]),
        [network("10.9.0.2")],
        [network("10.1.0.2", port="x")],
        [network("10.1.0.2", port=0)],
        [network("-x")],
    ],
)
def test_networks_that_are_none(nonsense):
    assert shared([network("10.1.0.1")], nonsense) == {}


PORT = {"device": "mlx5_0", "port": 1, "state": "ACTIVE", "link_layer": "InfiniBand", "selected": True}
V4, LOCAL = "0000:0000:0000:0000:0000:ffff:0a00:0001", "fe80:0000:0000:0000:a088:c203:00f6:0001"
GIDS = [
    {"index": 0, "gid": LOCAL, "type": "IB/RoCE v1"},
    {"index": 1, "gid": LOCAL, "type": "RoCE v2"},
    {"index": 2, "gid": V4, "type": "IB/RoCE v1"},
    {"index": 3, "gid": "2001:0db8:0000:0000:0000:0000:0000:0001", "type": "RoCE v2"},
    {"index": 5, "gid": V4, "type": "RoCE v2"},
]


@pytest.fixture
def has_tool(monkeypatch):
    monkeypatch.setattr(rdma_transports, "find_tool", lambda: Tool("/usr/bin/ib_write_bw", True, True))


def rails(*ports, own=RANKS, **variables):
    found = own_rails(NodeReport.from_message({"infiniband": list(ports)}), own, variables)
    found.close()
    return found


def test_the_adapters_that_nccl_will_use_are_measured(has_tool):
    idle, other = {**PORT, "port": 2, "state": "DOWN"}, {**PORT, "device": "mlx5_9", "selected": False}
    found = rails(PORT, idle, other, {**PORT, "device": "mlx5_1"})
    assert {name: adapter for name, (adapter, _) in found.adapters.items()} == {
        "mlx5_0:1": Adapter("mlx5_0", 1),
        "mlx5_1:1": Adapter("mlx5_1", 1),
    }
    assert [one["layer"] for one in found.offered["at"]] == ["InfiniBand"] * 2
    (fast,) = rails({**PORT, "rate_gbits": 400.0}).offered["at"]
    assert fast["rate"] == 50e9
    assert len(rails(*({**PORT, "device": f"mlx5_{n}"} for n in range(20))).adapters) == 8


@pytest.mark.parametrize(
    ("gids", "variables", "index"),
    [(GIDS, {}, 5), (GIDS[:4], {}, 3), (GIDS[:3], {}, None), (GIDS, {"NCCL_IB_GID_INDEX": "1"}, 1), (None, {}, None)],
)
def test_roce_is_spoken_at_the_address_that_nccl_takes(has_tool, gids, variables, index):
    (one,) = rails({**PORT, "link_layer": "Ethernet", "gids": gids}, **variables).adapters.values()
    assert one[0].gid_index == index


def test_why_adapters_are_not_measured(has_tool, monkeypatch):
    assert rails().why_not == own_rails(None, RANKS, {}).why_not == NO_PORT
    assert "NCCL_IB_DISABLE" in rails(PORT, NCCL_IB_DISABLE="1").why_not
    assert "no address" in rails(PORT, own=[]).why_not
    assert "link-local" in rails(PORT, own=[RankAddress("fe80::1%2", "eth0", "gloo")]).why_not
    assert "cannot listen at 192.0.2.1" in rails(PORT, own=[RankAddress("192.0.2.1", "eth0", "gloo")]).why_not
    monkeypatch.setattr(rdma_transports, "find_tool", lambda: "ib_write_bw is not installed (package perftest)")
    assert "not installed" in rails(PORT).why_not
    names, offers = ["a", "b", "c"], [{"rails": rails(PORT).offered}, {"rails": OwnRails().offered}, {"rails": 7}]
    assert why_without(names, offers) == {"a": "ib_write_bw is not installed (package perftest)"}


def rail(name="mlx5_0:1", layer="InfiniBand", port=4000, rate=0.0):
    return {"name": name, "layer": layer, "port": port, "rate": rate}


def of_rails(*of_nodes):
    offers = [{"rails": {"address": f"10.0.0.{node + 1}", "at": at}} for node, at in enumerate(of_nodes)]
    return {transport.name: list(transport.nodes) for transport in shared_rails(offers, OwnRails())}


def test_adapters_of_one_name_and_kind_are_a_rail():
    """One that is down on a node moves no other in its place."""
    first, second, third = rail(), rail("mlx5_1:1"), rail("mlx5_2:1")
    assert of_rails([first, second, third], [first, third], [third]) == {"mlx5_0:1": [0, 1], "mlx5_2:1": [0, 1, 2]}
    assert of_rails([first], [rail(layer="Ethernet")]) == {}
    both = rail(layer="Ethernet")
    assert of_rails([first], [first], [both], [both]) == {}


def test_what_no_link_of_an_adapter_comes_near_is_measured_again_too():
    offers = [{"rails": {"address": f"10.0.0.{n + 1}", "at": [rail(rate=rate)]}} for n, rate in enumerate((50e9, 25e9))]
    (transport,) = shared_rails(offers, OwnRails())
    assert transport.expected == 25e9
    (other,) = shared_rails([offers[0], {"rails": {"address": "10.0.0.2", "at": [rail(rate="x")]}}], OwnRails())
    assert other.expected == 0
    found = Links(Rendezvous(), ["a", "b"], transport)
    found._take([[[1, "mlx5_0:1", None, 15e9, ""]], [[0, "mlx5_0:1", None, 15e9, ""]]])
    assert found._slow() == [(0, 1)]
    found._take([[[1, "mlx5_0:1", None, 24e9, ""]], [[0, "mlx5_0:1", None, 23e9, ""]]])
    assert found._slow() == []


@pytest.mark.parametrize("nonsense", [None, 7, [7], [{}], [rail(port="x")], [rail(port=0)], [rail(port=2**16)]])
def test_rails_that_are_none(nonsense):
    assert of_rails([rail()], nonsense) == {}


def test_where_nodes_meet_for_an_adapter_is_an_address_and_no_option():
    offers = [{"rails": {"address": address, "at": [rail()]}} for address in ("10.0.0.1", "--output=x")]
    assert shared_rails(offers, OwnRails()) == []


def test_what_there_is_no_time_for_is_left_out():
    transports = [NetworkTransport("10.1.0.0/24", {}, 0, [])]
    (one,) = measure_others(Rendezvous(), ["a", "b"], transports, seconds=0.0)
    assert (one.name, one.links) == ("10.1.0.0/24", ()) and "the 0 s that there are" in one.skipped
