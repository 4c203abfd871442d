"""What a rank says of the network that it talks over, by NCCL's own log."""

import pytest

from allranks.train.transport import network_in
from tests.nccl_logs import VERSIONS, Cluster, rank_log


@pytest.mark.parametrize("version", VERSIONS)
def test_the_network_is_the_one_that_nccl_names(tmp_path, version):
    log = tmp_path / "rank-00000.1.log"
    log.write_text(rank_log(Cluster(version, on_sockets=(1,)), 0))
    assert network_in(log) == "IB"
    log.write_text(rank_log(Cluster(version, on_sockets=(1,)), 1))
    assert network_in(log) == "Socket"


def test_all_networks_of_one_rank_are_told(tmp_path):
    log = tmp_path / "rank-00000.1.log"
    log.write_text(rank_log(Cluster(), 0) + rank_log(Cluster(on_sockets=(0,)), 0))
    assert network_in(log) == "IB, Socket"


def test_another_process_that_breaks_into_the_line_is_no_part_of_the_name(tmp_path):
    log = tmp_path / "rank-00000.1.log"
    told = rank_log(Cluster(), 0)
    log.write_text(told.replace("Using network IB", "Using network IBnode0:4001:4001 [1] NCCL INFO cudaDriverVersion"))
    assert network_in(log) == "IB"


def test_a_log_that_is_none_names_no_network(tmp_path):
    log = tmp_path / "rank-00000.1.log"
    log.write_bytes(b"\xff\0NCCL INFO\nUsing network")
    assert network_in(log) is None
