"""Hundreds of nodes through one head: all of them answer, and the head stays small.

`python -m benchmarks.fanout` does the same with 1,024, which takes a minute of two cores.
"""

from allranks.cluster.nodes import parse_hosts, read_hostfile
from benchmarks.fanout import measure


def test_a_head_of_256_nodes_has_32_connections_and_little_memory():
    measured = measure(256)  # asserts that each node told its facts, ran its command, and that its output arrived
    assert measured["processes"] == 32
    assert measured["peak_mib"] < 100


def test_node_sets_and_host_files_of_1024_nodes(tmp_path):
    hosts = parse_hosts("node[0-1023]")
    path = tmp_path / "hosts"
    path.write_text("".join(f"{host} slots=8\n" for host in hosts))
    assert [host.name for host in read_hostfile(path)] == [f"node{index}" for index in range(1024)]
