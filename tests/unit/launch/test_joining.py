"""How a node's end reaches the others."""

import pytest

from allranks.cluster.account import NodeAccount
from allranks.launch import joining
from allranks.launch.node.this_node import Node
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.observe import RunDir


class Channel:
    """Stands in for a rendezvous that has been reached."""

    run_id, nodes, notes, world_size = "now", (), (), 2

    def stop_finding(self):
        return None

    def leave(self, code, finding):
        self.left = (code, finding)


def test_a_crash_of_allranks_itself_is_told_as_one_and_still_raised(tmp_path, monkeypatch):
    channel = Channel()
    monkeypatch.setattr(joining, "join", lambda own, terms, agreement, **options: channel)
    monkeypatch.setattr(joining, "prove_pairs", lambda rendezvous, own, **options: None)
    launch = resolve(LaunchOptions(nnodes="2", node_rank=1, master_addr="node0"), num_gpus=0)
    with (
        pytest.raises(KeyError),
        joining.join_peers(launch, Node(1, RunDir(tmp_path), "now", "launch", []), NodeAccount(), {}),
    ):
        raise KeyError("a fault of ours")
    code, finding = channel.left
    assert (code, finding.code) == (1, "fault")
    assert "allranks itself crashed on this node: KeyError('a fault of ours')" in finding.what
