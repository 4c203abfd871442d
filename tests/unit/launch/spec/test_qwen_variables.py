import pytest

from allranks.errors import UsageError
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.qwen_variables import port_words
from allranks.launch.spec.where import NodeOptions

TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


def words(env, nodes=None, **given):
    return port_words(LaunchOptions(**given), nodes or NodeOptions(), env)


def test_several_nodes_meet_at_the_scripts_own_port_if_none_is_given():
    assert words(TWO) == ["--master-port", "6001"]
    assert words({"NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}, nnodes="2") == ["--master-port", "6001"]
    assert words({**TWO, "MASTER_PORT": "7000"}) == words(TWO, master_port=7000) == []


def test_no_port_where_none_is_needed():
    assert words({}) == words({"NNODES": "1"}) == words(TWO, nnodes="1") == []
    assert words(TWO, NodeOptions(hosts="a,b")) == words(TWO, rdzv_endpoint="a:1", nnodes="2") == []


def test_a_wrong_environment_is_refused_before_anything_is_written():
    with pytest.raises(UsageError, match="NNODES=2 also needs NODE_RANK"):
        words({"NNODES": "2"})
