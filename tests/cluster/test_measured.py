"""What `allranks check` measures on real nodes: a slow link is named with its ends and its transport (healthy ones:
test_check.py)."""

from __future__ import annotations

import json
import sys

import pytest

from tests import ib_write_bw_stand_in
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
    # One of 34 MB would take 18 s: the rate is known before.
    (figures,) = [one["what"] for one in slow["findings"] if one["code"] == "measured.figures"]
    assert "an all-reduce of 1 MB over 3 ranks" in figures


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
    told = "so far:     error: node[0,2]: from node2 to node0 (eth0) "
    assert told in output and "Look at the cables" in output, "before what takes longer was measured"


def _found(output: str, *codes: str) -> dict[str, tuple[list[str], str, str]]:
    """Of these checks, what was found: the nodes, what, and the state. Each finds one thing."""
    said = json.loads(output.splitlines()[-1])
    found = [one for one in said["findings"] if one["code"] in codes]
    assert len({one["code"] for one in found}) == len(found), found
    return {one["code"]: (one["nodes"], one["what"], one["state"]) for one in found}


@pytest.mark.thorough
def test_a_faster_network_that_nobody_uses_is_named_and_the_slow_node_of_it(lab: Lab, base_config: dict) -> None:
    """The ranks' own network carries 100 Mbit/s on all nodes; the second some Gbit/s, and on node 2 a fiftieth."""
    checked = make_training(lab, "second", base_config, output_dir="/root/run")
    lab.second_network(0, 1, 2)
    for index in range(3):
        lab.limit(index, "100mbit")
    (output,) = checked.finish([checked.start(0, CHECK)])
    found = _found(output, "measured.bandwidth", "measured.networks", "measured.faster-network")
    assert list(found) == ["measured.faster-network"], found
    nodes, what, state = found["measured.faster-network"]
    assert (nodes, state) == (["node0", "node1", "node2"], "warned")
    assert "the ranks use eth0 (" in what and ", and eth1 (10.78.0.0/24) carries " in what
    lab.limit(2, "20mbit", second=True)
    (output,) = checked.finish([checked.start(0, CHECK)])
    found = _found(output, "measured.bandwidth", "measured.networks", "measured.faster-network")
    assert list(found) == ["measured.networks"], found  # the ranks' own is as quick on node 2 as elsewhere
    nodes, what, state = found["measured.networks"]
    assert (nodes, state) == (["node2"], "noted")
    assert "over 10.78.0.0/24, every link that was measured of it is slow: " in what
    assert list(json.loads(output.splitlines()[-1])["transports"]) == ["10.78.0.0/24"]


def _adapters(lab: Lab, index: int, devices: tuple[str, ...], gbits: float) -> None:
    """InfiniBand of 200 Gbit/s as the kernel shows it, and the stand-in for ib_write_bw, which is not the real one."""
    node = lab.node(index)
    for device in devices:
        port = f"/root/ib/infiniband/{device}/ports/1"
        files = {"state": "4: ACTIVE", "phys_state": "5: LinkUp", "rate": "200 Gb/sec (4X HDR)"}
        files |= {"link_layer": "InfiniBand", "gids/0": "fe80:0000:0000:0000:a088:c203:00f6:0001"}
        for name, content in files.items():
            node.write(f"{port}/{name}", f"{content}\n")
    layers = "lowerdir=/root/ib:/sys/class"
    node.run(["mount", "-t", "overlay", "overlay", "-o", layers, "/sys/class"], check=True)
    node.write("/usr/local/bin/ib_write_bw.json", ib_write_bw_stand_in.settings(gbits=gbits))
    node.write("/usr/local/bin/ib_write_bw", ib_write_bw_stand_in.text())
    node.run(["chmod", "+x", "/usr/local/bin/ib_write_bw"], check=True)


@pytest.mark.thorough
def test_a_slow_adapter_is_named_and_a_node_without_the_program(lab: Lab, base_config: dict) -> None:
    """By a stand-in: nothing here is RDMA. Who meets whom, at which port, and who is named, is as with the real one."""
    checked = make_training(lab, "adapters", base_config, output_dir="/root/run")
    for index, gbits in enumerate((196.0, 195.0, 30.0)):
        _adapters(lab, index, ("mlx5_0", "mlx5_1"), gbits=gbits)
    (output,) = checked.finish([checked.start(0, CHECK)])
    said = [one for one in json.loads(output.splitlines()[-1])["findings"] if one["code"] == "measured.infiniband"]
    assert [(one["nodes"], one["state"]) for one in said] == [(["node2"], "noted")] * 2, said
    for adapter, one in zip(("mlx5_0:1", "mlx5_1:1"), said, strict=True):
        assert f"by ib_write_bw over {adapter}, every link that was measured of it is slow: " in one["what"]
        assert "30 Gbit/s come through, 15% of the 200 Gbit/s that its port has" in one["what"]
    assert list(json.loads(output.splitlines()[-1])["transports"]) == ["mlx5_0:1", "mlx5_1:1"]
    lab.node(2).run(["rm", "/usr/local/bin/ib_write_bw"], check=True)
    (output,) = checked.finish([checked.start(0, CHECK)])
    (check,) = [one for one in json.loads(output.splitlines()[-1])["checks"] if one["id"] == "measured.infiniband"]
    assert check["but"] == {"skipped": ["node2"]} and check["state"] == "ok"
    assert check["reasons"] == [["skipped", "node2: ib_write_bw is not installed (package perftest)"]]
    assert [lab.node(index).processes() for index in range(3)] == [[], [], []]
