"""What `allranks check` measures on real nodes: a slow link is named with its ends (healthy ones: test_check.py)."""

from __future__ import annotations

import json
import sys

import pytest

from tests.cluster.lab import Lab
from tests.cluster.training import make_training

CHECK = (sys.executable, "-m", "allranks", "check", "c.yaml", "--nproc-per-node", 1, "--hosts", "node[0-2]", "--json")


def test_a_node_whose_links_carry_a_tenth_of_the_others_is_named(lab: Lab, base_config: dict) -> None:
    checked = make_training(lab, "measured", base_config, output_dir="/root/run")
    limit = ["tbf", "rate", "20mbit", "burst", "64kb", "latency", "50ms"]
    lab.node(2).run(["tc", "qdisc", "replace", "dev", "eth0", "root", *limit], check=True)
    (output,) = checked.finish([checked.start(0, CHECK)], expect=[3])
    slow = json.loads(output.splitlines()[-1])
    failed = [one for one in slow["findings"] if one["state"] == "failed"]
    assert [(one["code"], one["nodes"]) for one in failed] == [("measured.bandwidth", ["node2"])], failed
    assert "from node2 to node0 (eth0) " in failed[0]["what"] and "Mbit/s come through" in failed[0]["what"]
    assert slow["rates"]["cells"][2].strip(".") and slow["failing"] == ["node2"]


@pytest.mark.thorough
def test_a_single_link_that_carries_a_tenth_of_the_others_is_named_with_both_its_ends(
    lab: Lab, base_config: dict
) -> None:
    """What node 2 sends to node 0 alone is limited; to node 1 it is as quick as all others."""
    checked = make_training(lab, "one-link", base_config, output_dir="/root/run")
    root = ["tc", "qdisc", "replace", "dev", "eth0", "root", "handle", "1:", "htb", "default", "1"]
    only = ["protocol", "ip", "parent", "1:", "u32", "match", "ip", "dst", f"{lab.node(0).ip}/32", "flowid", "1:2"]
    for command in (
        root,
        ["tc", "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:1", "htb", "rate", "10gbit"],
        ["tc", "class", "add", "dev", "eth0", "parent", "1:", "classid", "1:2", "htb", "rate", "20mbit"],
        ["tc", "filter", "add", "dev", "eth0", *only],
    ):
        lab.node(2).run(command, check=True)
    (output,) = checked.finish([checked.start(0, CHECK)], expect=[3])
    slow = json.loads(output.splitlines()[-1])
    failed = [one for one in slow["findings"] if one["state"] == "failed"]
    assert [(one["code"], one["nodes"]) for one in failed] == [("measured.bandwidth", ["node0", "node2"])], failed
    assert "from node2 to node0 (eth0) " in failed[0]["what"] and "node1" not in failed[0]["what"], failed
