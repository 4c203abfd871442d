"""Two nodes measure what joins them beside the ranks' own network: over real sockets of this machine, and by a stand-in
for ib_write_bw (`tests/ib_write_bw_stand_in.py`), which is no RDMA."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import psutil
import pytest

from allranks.cluster.measure.values import TransportMeasured
from allranks.cluster.node_report import NodeReport
from allranks.cluster.rank_addresses import RankAddress
from allranks.launch.preflight.measuring_others import measure_others
from allranks.launch.preflight.rdma_transports import own_rails, shared_rails
from allranks.launch.preflight.tcp_transports import offered_networks, secret_of, shared_networks
from allranks.rendezvous import Rendezvous
from tests.ib_write_bw_stand_in import install
from tests.unit.rendezvous.nodes import Nodes, node_of

PORT = {"device": "mlx5_0", "port": 1, "state": "ACTIVE", "link_layer": "InfiniBand"}


def report(rank: int) -> NodeReport:
    """Of a node with a second card, and with one adapter; the second node has another one, which no other has."""
    card = {"name": f"ens{rank}", "state": "up", "addresses": [{"address": f"127.1.0.{rank + 1}", "prefix": 24}]}
    ports = [PORT] if rank == 0 else [PORT, {**PORT, "device": "mlx5_1"}]
    return NodeReport.from_message({"interfaces": [card], "infiniband": ports})


def measured(rendezvous: Rendezvous) -> list[TransportMeasured]:
    """A node's part, as `measure_together` has it, without the ranks' own network and the devices."""
    rank, nonce = rendezvous.own.node_rank, f"nonce {rendezvous.own.node_rank}"
    own = [RankAddress(f"127.0.0.{rank + 1}", "eth0", "gloo")]
    with ExitStack() as open_ends:
        networks, receivers = offered_networks(report(rank), own, secret_of("t", nonce))
        rails = own_rails(report(rank), own, {})
        for end in (*receivers, rails):
            open_ends.callback(end.close)
        offer = {"nonce": nonce, "at": [], "networks": networks, "rails": rails.offered}
        offers = rendezvous.round("offers", offer, 60.0)
        transports = [*shared_networks(offers, rank, "t"), *shared_rails(offers, rails)]
        return measure_others(rendezvous, ["node0", "node1"], transports)


@pytest.fixture
def two_nodes():
    nodes = Nodes()
    for rank in (0, 1):
        nodes.start(node_of(rank))
    yield nodes.wait()
    nodes.leave()


def test_two_nodes_measure_their_second_network_and_their_adapters(two_nodes, tmp_path, monkeypatch):
    install(tmp_path, gbits=187.0)
    monkeypatch.setenv("PATH", str(tmp_path))
    found: dict[int, list[TransportMeasured]] = {}
    threads = [
        threading.Thread(target=lambda rank=rank: found.__setitem__(rank, measured(two_nodes[rank]))) for rank in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    network, rail = found[0]
    assert (network.kind, network.name, rail.kind, rail.name) == ("tcp", "127.1.0.0/24", "rdma", "mlx5_0:1")
    assert [(one.source, one.target, one.interface, one.failed) for one in (*network.links, *rail.links)] == [
        ("node0", "node1", "ens0", ""),
        ("node1", "node0", "ens1", ""),
        ("node0", "node1", "mlx5_0:1", ""),
        ("node1", "node0", "mlx5_0:1", ""),
    ]
    assert all(one.bytes_per_second > 1e6 and one.latency_seconds > 0 for one in network.links)
    assert [one.bytes_per_second for one in rail.links] == [pytest.approx(187e9 / 8)] * 2
    assert network.share_seen == rail.share_seen == 1
    assert [one for one in psutil.Process().children() if one.name() == "ib_write_bw"] == []
