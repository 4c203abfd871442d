"""The network's settings of a node: what its launcher says and adds, and what the nodes compare."""

import pytest

from allranks.cluster.account import NodeAccount
from allranks.cluster.account_differences import differences, notes
from allranks.config.load import resolve_mapping
from allranks.errors import UsageError
from allranks.launch.node.environment import network_variables
from allranks.launch.spec.options import LaunchOptions, resolve

FLAT = {"base_model": "m", "learning_rate": 1e-4, "datasets": [{"path": "d", "type": "alpaca"}]}
ALONE = resolve(LaunchOptions(nproc_per_node=2), num_gpus=0)


def config(**network):
    return resolve_mapping({**FLAT, "network": network})


def test_what_is_told_and_added(tmp_path, capsys):
    env = {"NCCL_SOCKET_IFNAME": "lo", "NCCL_TIMEOUT": "1800", "NCCL_DEBUG": "WARN"}
    added = network_variables(config(infiniband="off", debug="INFO"), ALONE, tmp_path, env)
    assert added == {"NCCL_IB_DISABLE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    out, err = capsys.readouterr()
    assert "network:    interface lo (127.0.0.1)\n" in out
    assert "NCCL_DEBUG=WARN of the environment wins over the config's INFO" in out
    assert err.startswith("warning: NCCL_TIMEOUT: there is no such variable")


def test_nothing_to_say_is_not_said(tmp_path, capsys):
    assert network_variables(config(), ALONE, tmp_path, {"HOME": str(tmp_path)}) == {}
    assert capsys.readouterr() == ("", "")


def test_logs_of_a_verbose_nccl(tmp_path, capsys):
    assert network_variables(config(debug="INFO"), ALONE, tmp_path, {}) == {"NCCL_DEBUG": "INFO"}, "ranks name theirs"
    assert f"nccl log:   a file for each rank in {tmp_path / 'nccl'}" in capsys.readouterr().out
    added = network_variables(None, ALONE, tmp_path / "50%", {"NCCL_DEBUG": "TRACE"})
    assert added == {"NCCL_DEBUG_FILE": f"{tmp_path / '50%%' / 'nccl'}/%h.%p.log"}
    assert (tmp_path / "50%" / "nccl").is_dir()


def test_on_gpus_nccl_of_anyones_program_logs_into_the_run_too(tmp_path):
    with_gpus = resolve(LaunchOptions(nproc_per_node=2), num_gpus=2)
    assert network_variables(None, with_gpus, tmp_path, {}) == {
        "NCCL_DEBUG": "INFO",
        "NCCL_DEBUG_SUBSYS": "INIT,BOOTSTRAP,ENV,NET",
        "NCCL_DEBUG_FILE": f"{tmp_path / 'nccl'}/%h.%p.log",
    }
    assert network_variables(None, with_gpus, tmp_path, {"NCCL_DEBUG": "WARN"}) == {}
    assert network_variables(config(), with_gpus, tmp_path, {}) == {}, "our ranks do it themselves"


def test_unreadable_values_are_refused(tmp_path):
    with pytest.raises(UsageError, match="NCCL_IB_DISABLE=yes"):
        network_variables(None, ALONE, tmp_path, {"NCCL_IB_DISABLE": "yes"})


def test_nodes_that_are_set_up_differently():
    nodes = [
        (f"node {rank} (gpu{rank})", NodeAccount(network=environment))
        for rank, environment in enumerate(
            [{"NCCL_BUFFSIZE": "2097152", "GLOO_SOCKET_IFNAME": "eth0"}, {"GLOO_SOCKET_IFNAME": "ens5"}]
        )
    ]
    assert differences(nodes) == [
        "NCCL_BUFFSIZE must be the same on all nodes, but is 2097152 on node 0 (gpu0), "
        "not set (default 4194304) on node 1 (gpu1)"
    ]
    (note,) = notes(nodes)
    assert note.startswith("GLOO_SOCKET_IFNAME is not the same on all nodes: ")
