import asyncio

import pytest

from allranks.cluster.account import NodeAccount, NodeAddress
from allranks.cluster.fanout import NodeRefused
from allranks.cluster.nodes import parse_hosts
from allranks.cluster.reach import find_address
from allranks.errors import RefusedError


class Network:
    """Says what agents would say: `reachable` are (node, address) pairs."""

    def __init__(self, hosts, reachable, reason="timed out", taken=False):
        self.hosts, self.reachable, self.reason, self.taken = parse_hosts(hosts), reachable, reason, taken
        self.listening = False

    async def ask(self, node, do, **fields):
        assert node == 0
        if do == "listen" and self.taken:
            raise NodeRefused(0, "already in use")
        self.listening = do == "listen"
        return {"token": "t"}

    async def ask_all(self, do, nodes, *, addresses, **fields):
        assert do == "reach" and self.listening
        return [
            {
                "reached": {
                    address: {"ok": True, "from": f"10.0.0.{node}"}
                    if (node, address) in self.reachable
                    else {"ok": False, "reason": self.reason}
                    for address in addresses
                }
            }
            for node in nodes
        ]


def accounts(*own):
    others = [[(f"10.0.0.{node}", f"eth{node}")] for node in (1, 2)]
    return [
        NodeAccount(addresses=[NodeAddress(interface, address) for address, interface in entries])
        for entries in (list(own), *others)
    ]


OWN = (("172.17.0.1", "docker0"), ("fd00::1", "ib0"), ("10.0.0.9", "eth0"), ("10.1.0.9", "ib0"))
ALL = {(node, address) for node in (1, 2) for address, _ in OWN}


def find(network, wanted=None, own=OWN):
    return asyncio.run(find_address(network, accounts(*own), 29500, wanted))


def test_no_bridge_and_rather_ipv4_in_the_kernels_order():
    network = Network("a,b,c", ALL)
    found = find(network)
    assert (found.address, found.interface, found.interfaces) == ("10.0.0.9", "eth0", {1: "eth1", 2: "eth2"})
    assert not network.listening


def test_the_address_that_was_named_comes_first():
    assert find(Network("10.1.0.9,b,c", ALL)).address == "10.1.0.9"
    assert find(Network("a,b,c", ALL), wanted="10.1.0.9").interface == "ib0"


def test_one_that_all_others_reach_is_taken():
    assert find(Network("a,b,c", ALL - {(2, "10.0.0.9")})).address == "10.1.0.9"
    assert find(Network("a,b,c", {(1, "fd00::1"), (2, "fd00::1")})).address == "fd00::1"


def test_pairs_that_cannot_talk_are_named():
    with pytest.raises(RefusedError) as error:
        find(Network("a,b,c", {(1, "10.0.0.9")}))
    lines = str(error.value).splitlines()
    assert lines[1] == "  c cannot reach a at 10.0.0.9:29500 (eth0): timed out: a firewall?"
    assert "  b cannot reach a at [fd00::1]:29500 (ib0): timed out: a firewall?" in lines
    assert "--master-addr" in lines[-1] and "--master-port" in lines[-1]


def test_a_port_that_is_taken_and_a_node_without_address():
    with pytest.raises(RefusedError, match="a cannot open port 29500: already in use"):
        find(Network("a,b,c", ALL, taken=True))
    with pytest.raises(RefusedError, match="no address that another node could reach"):
        find(Network("a,b,c", ALL), own=())
