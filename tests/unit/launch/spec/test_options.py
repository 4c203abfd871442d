import pytest

from allranks.errors import UsageError
from allranks.launch.spec.options import LaunchOptions, resolve

TWO = {"nnodes": "2", "node_rank": 1, "master_addr": "10.0.0.1"}


def test_alone_on_a_cpu_is_one_process():
    launch = resolve(LaunchOptions(), num_gpus=0)
    assert (launch.world_size, launch.nproc_per_node, launch.node_rank) == (1, 1, 0)


def test_processes_default_to_the_gpus_of_the_node():
    assert resolve(LaunchOptions(**TWO), num_gpus=8).world_size == 16


def test_static_rendezvous_defaults_to_torchruns_port():
    launch = resolve(LaunchOptions(**TWO), num_gpus=0)
    assert (launch.backend, launch.endpoint) == ("static", "10.0.0.1:29500")


def test_axolotls_c10d_form_needs_no_node_rank():
    launch = resolve(
        LaunchOptions(nnodes="2", rdzv_backend="c10d", rdzv_id="j", rdzv_endpoint="head:29400"), num_gpus=8
    )
    assert (launch.backend, launch.endpoint, launch.rdzv_id, launch.node_rank) == ("c10d", "head:29400", "j", None)
    assert resolve(LaunchOptions(nnodes="2", rdzv_backend="c10d", rdzv_endpoint="head"), num_gpus=8).port == 29400


def test_an_ipv6_endpoint_keeps_its_colons():
    launch = resolve(LaunchOptions(nnodes="2", rdzv_endpoint="[fe80::1]:4711"), num_gpus=0)
    assert (launch.address, launch.port, launch.endpoint) == ("fe80::1", 4711, "[fe80::1]:4711")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        # Each node would train alone, and exit 0.
        ({"node_rank": 0, "master_addr": "10.0.0.1"}, "--node-rank and --master-addr without --nnodes"),
        ({"nnodes": "2"}, "also needs --master-addr HOST .* and --node-rank R"),
        ({"nnodes": "2", "node_rank": 0}, "also needs --master-addr"),
        ({"nnodes": "2", "master_addr": "a"}, r"also needs --node-rank R \(0 to 1"),
        ({"nnodes": "2", "rdzv_backend": "c10d"}, "also needs --rdzv-endpoint"),
        ({**TWO, "node_rank": 2}, "node ranks go from 0 to 1"),
        ({**TWO, "node_rank": -1}, "node ranks go from 0 to 1"),
        ({**TWO, "master_port": 70000}, "port 70000"),
        ({**TWO, "master_port": 0}, "port 0"),
        ({**TWO, "rdzv_endpoint": "b:1"}, "name the same thing"),
        ({**TWO, "rdzv_backend": "etcd"}, "expected static or c10d"),
        ({**TWO, "nnodes": "2:4"}, "needs --rdzv-backend c10d"),
        ({"nnodes": "0"}, "--nnodes 0"),
        ({"nnodes": "two"}, "--nnodes two"),
        ({"nnodes": "1", "node_rank": 1}, "a single node has rank 0"),
        ({"nproc_per_node": 0}, "expected 1 or more"),
        ({"nproc_per_node": 3}, "2 visible GPU"),
        ({"launcher": "slurm"}, "--launcher slurm: expected torchrun, accelerate, deepspeed"),
        ({**TWO, "launcher": "accelerate", "nnodes": "2:4"}, "a range of nodes needs --launcher torchrun"),
        ({**TWO, "launcher": "deepspeed", "rdzv_backend": "c10d"}, "c10d rendezvous needs --launcher torchrun"),
        ({**TWO, "launcher": "deepspeed", "max_restarts": 1}, "--max-restarts needs --launcher torchrun"),
        ({"accelerate_config": "a.yaml"}, "--accelerate-config is for --launcher accelerate"),
        ({"max_restarts": -1}, "--max-restarts -1"),
        ({"grace_seconds": float("nan")}, "--grace-seconds"),
    ],
)
def test_half_a_launch_is_refused(options, message):
    with pytest.raises(UsageError, match=message):
        resolve(LaunchOptions(**options), num_gpus=2)


@pytest.mark.parametrize(
    ("changed", "meets"),
    [({}, True), ({"max_restarts": 1}, False), ({"nnodes": "2:3"}, False), ({"nnodes": "1:2"}, False)],
)
def test_nodes_of_c10d_meet_unless_others_may_come_later(changed, meets):
    options = {"nnodes": "2", "rdzv_backend": "c10d", "rdzv_endpoint": "head"}
    launch = resolve(LaunchOptions(**{**options, **changed}), num_gpus=0)
    assert (launch.meets, launch.is_elastic) == (meets, not meets)
    assert not resolve(LaunchOptions(max_restarts=1), num_gpus=0).is_elastic
