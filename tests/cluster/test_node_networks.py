"""Nodes that are not as they should be: unlike each other, without InfiniBand, with a name that means loopback."""

import json
import re
import sys

import pytest

from allranks.observe import read_events
from allranks.observe.events import CommunicationEvent
from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TRAIN = (sys.executable, "-m", "allranks", "train", "c.yaml")
BY_HAND = (
    *TRAIN,
    "--nnodes",
    2,
    "--nproc-per-node",
    1,
    "--master-addr",
    "node0",
    "--master-port",
    29531,
    "--node-rank",
)
# What Debian's installer writes: on each node its own name means loopback.
HOSTS = "127.0.0.1 localhost\n127.0.1.1 {own.name}\n{other.ip} {other.name}\n"


def test_nodes_that_differ_are_refused_and_nodes_whose_names_mean_loopback_meet(lab: Lab, base_config: dict) -> None:
    training = make_training(lab, "networks", base_config, max_steps=2)
    node0, node1 = lab.node(0), lab.node(1)
    node1.write("/etc/nccl.conf", "NCCL_PROTO=Simple\n")
    outputs = training.finish([training.start(rank, (*BY_HAND, rank)) for rank in (0, 1)], expect=[3, 3])
    for output in outputs:
        assert "NCCL_PROTO must be the same on all nodes, but is not set on node 0 (node0), Simple on node 1" in output
    assert "NCCL_PROTO is set in /etc/nccl.conf" in outputs[1]

    (refused,) = training.finish([training.start(1, (*BY_HAND, 1, "--network.infiniband", "required"))], expect=[3])
    assert "network.infiniband: required, but this node (node1) has no active InfiniBand or RoCE port" in refused

    node1.run(["rm", "/etc/nccl.conf"], check=True)
    node0.write("/etc/hosts", HOSTS.format(own=node0, other=node1))
    node1.write("/etc/hosts", HOSTS.format(own=node1, other=node0))
    for node in (node0, node1):
        assert node.run(["getent", "hosts", node.name]).stdout.startswith("127.0.1.1")
    # The lab's own variable would hide what this shows.
    unset = {"GLOO_SOCKET_IFNAME": ""}
    outputs = training.finish([training.start(rank, (*BY_HAND, rank), **unset) for rank in (0, 1)])
    for output in outputs:
        assert "network:    gloo uses interface eth0" in output
    manifest = json.loads(training.run.manifest.read_text())
    accounts = manifest["nodes"]
    assert [account["environment"]["GLOO_SOCKET_IFNAME"] for account in accounts.values()] == ["eth0", "eth0"]
    assert len(training.losses()) == 2
    # The quick checks were made, and their seconds are shown; node 0 keeps what the nodes reported.
    assert re.search(r"^preflight:  \d+ checks on node\[0-1\] in \d+\.\d s: ", outputs[0], re.MULTILINE), outputs[0]
    assert manifest["preflight"]["findings"] == [] and manifest["preflight"]["seconds"] > 0
    assert sorted(json.loads(training.run.preflight.read_text())["reports"]) == ["node0", "node1"]
    # Whoever reads the output learns what the network has to carry: DDP's float32 gradients, once a step.
    (event,) = [event for event in read_events(training.run.events(0)) if isinstance(event, CommunicationEvent)]
    sent = max(event.node_sends_bytes)
    reduced = sum(kind["num_bytes"] for kind in event.collectives if kind["op"] == "all_reduce")
    assert reduced > 200_000 and 0 <= sent - reduced < 1000
    assert f"between nodes: step 2: each of 2 nodes sends {sent / 1000:.2f} kB a step" in outputs[0]
    assert f"between nodes: each of 2 nodes sends {sent / 1000:.2f} kB a step" in outputs[0]


@pytest.mark.thorough
def test_nodes_whose_ranks_could_not_talk_are_refused_before_any_rank_starts(lab: Lab, base_config: dict) -> None:
    """Only the master port is open, then large packets are lost: the nodes meet, and would hang at the first step."""
    training = make_training(lab, "pairs", base_config, max_steps=2)
    master = ("-p", "tcp", "--dport", "29531", "-j", "ACCEPT")
    answers = ("-p", "tcp", "--sport", "29531", "-j", "ACCEPT")
    for node in (0, 1):  # as firewalld does
        lab.filter(node, "INPUT", *master)
        lab.filter(node, "INPUT", *("-p", "tcp", "--syn", "-j", "REJECT", "--reject-with", "icmp-host-prohibited"))
    outputs = training.finish([training.start(rank, (*BY_HAND, rank)) for rank in (0, 1)], expect=[3, 3])
    for output in outputs:
        assert "error: the nodes have met, but their ranks could not talk to each other:" in output
        for here, there in ((0, 1), (1, 0)):
            named = f"node {here} (node{here}) cannot connect to node {there} (node{there}) at {lab.node(there).ip}:"
            (line,) = [line for line in output.splitlines() if named in line]
            assert line.endswith(" (eth0, gloo): no route to host")
        assert "open TCP 32768 to 60999 between the nodes of the run" in output

    for node in (0, 1):
        lab.heal(node)
        lab.filter(node, "INPUT", *master)
        lab.filter(node, "INPUT", *answers)
        lab.filter(node, "INPUT", *("-p", "tcp", "-m", "length", "--length", "1000:65535", "-j", "DROP"))
    outputs = training.finish([training.start(rank, (*BY_HAND, rank)) for rank in (0, 1)], expect=[3, 3])
    for output in outputs:
        assert "but a message of 96 KiB does not get through: timed out" in output
        assert "the MTU is not the same all the way (eth0 of node 0 (node0) has 1500, eth0 of node 1" in output
    assert not list(training.run.all_events())
