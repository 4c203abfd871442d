import pytest

from allranks.cluster.expected import check_world_size
from allranks.cluster.identity import identify
from allranks.errors import UsageError

THREE = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", "GROUP_RANK": "1"}


def test_nodes_that_said_different_numbers_are_told():
    with pytest.raises(UsageError, match="node 1 was started for 2 ranks, but 3 met"):
        check_world_size(identify(THREE), {"ALLRANKS_WORLD_SIZE": "2"})


def test_the_right_number_and_no_number_pass():
    check_world_size(identify(THREE), {"ALLRANKS_WORLD_SIZE": "3"})
    check_world_size(identify(THREE), {})


def test_fewer_ranks_than_nodes_are_told():
    with pytest.raises(UsageError, match="node 1 was started as one of 4 nodes, but only 3 rank"):
        check_world_size(identify(THREE), {"ALLRANKS_NNODES": "4"})
    check_world_size(identify(THREE), {"ALLRANKS_NNODES": "2"})
