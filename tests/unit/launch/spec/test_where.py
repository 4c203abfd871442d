import socket
import sys

import pytest

from allranks.cluster.nodes import Host
from allranks.errors import UsageError
from allranks.launch.spec.options import LaunchOptions
from allranks.launch.spec.where import NodeOptions, find_nodes

HERE = socket.gethostname()
SLURM = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[0-2]", "SLURM_JOB_NUM_NODES": "3", "SLURMD_NODENAME": "n0"}
WORDS = ["train", "c.yaml"]


@pytest.fixture
def pbs(tmp_path):
    path = tmp_path / "nodefile"
    path.write_text("n0\nn0\nn1\n")
    return {"PBS_JOBID": "9", "PBS_NODEFILE": str(path)}


def find(asked=None, env=None, words=WORDS, **launch):
    return find_nodes(asked or NodeOptions(), LaunchOptions(**launch), words, env or {})


def test_without_nodes_and_allocation_the_run_is_here():
    assert find() is None
    assert find(nnodes="2", node_rank=1, master_addr="a") is None


def test_hosts_are_started_over_ssh():
    found = find(NodeOptions(hosts="n1,n0"))
    assert [host.name for host in found.hosts] == ["n1", "n0"]
    assert (found.transport.kind, found.transport.python, found.port) == ("ssh", sys.executable, 29500)


def test_slots_of_a_host_file(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("n0 slots=2\nn1\n")
    assert find(NodeOptions(hostfile=str(path))).hosts == [Host("n0", 2), Host("n1")]
    with pytest.raises(UsageError, match="--nproc-per-node 4, but the host file says n0 slots=2"):
        find(NodeOptions(hostfile=str(path)), nproc_per_node=4)


def test_processes_per_node_hold_for_all():
    assert [host.slots for host in find(NodeOptions(hosts="a,b"), nproc_per_node=3).hosts] == [3, 3]


def test_the_port_is_the_rendezvous_own_or_the_users():
    assert find(NodeOptions(hosts="a,b"), rdzv_backend="c10d").port == 29400
    assert find(NodeOptions(hosts="a,b"), master_port=6001).port == 6001


def test_a_slurm_job_of_several_nodes_is_started_as_a_whole():
    found = find(env=SLURM)
    assert [host.name for host in found.hosts] == ["n0", "n1", "n2"] and found.transport.kind == "srun"
    assert [host.name for host in find(env=SLURM, nnodes="2").hosts] == ["n0", "n1"]


def test_inside_a_slurm_job_one_node_may_be_meant():
    assert find(env=SLURM, nnodes="1") is None
    assert find(env=SLURM, nnodes="3", node_rank=1, master_addr="n0") is None
    assert find(env={**SLURM, "SLURM_JOB_NODELIST": "n0", "SLURM_JOB_NUM_NODES": "1"}) is None


def test_a_file_for_accelerate_that_names_this_node_starts_only_this_node(tmp_path):
    path = tmp_path / "accelerate.yaml"
    path.write_text("distributed_type: FSDP\nnum_machines: 3\nmachine_rank: 1\nmain_process_ip: n0\nnum_processes: 3\n")
    assert find(env=SLURM, launcher="accelerate", accelerate_config=str(path)) is None
    path.write_text("distributed_type: FSDP\nmixed_precision: bf16\n")
    assert len(find(env=SLURM, launcher="accelerate", accelerate_config=str(path)).hosts) == 3


def test_salloc_leaves_the_shell_on_the_login_node():
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "far", "SLURM_JOB_NUM_NODES": "1"}
    assert [host.name for host in find(env=env).hosts] == ["far"]
    assert find(env={**env, "SLURM_JOB_NODELIST": HERE}) is None


def test_tasks_of_the_users_own_srun_start_nobody():
    assert find(env={**SLURM, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "3"}) is None


def test_a_pbs_job_is_started_by_pbsdsh_where_that_is_there(pbs, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find(env=pbs).transport.kind == "ssh"
    (tmp_path / "pbsdsh").touch(0o755)
    found = find(env=pbs)
    assert [host.name for host in found.hosts] == ["n0", "n1"]
    assert found.transport.kind == "pbsdsh" and found.transport.flat >= 2


def test_hosts_inside_an_allocation_are_reached_as_its_own():
    assert find(NodeOptions(hosts="n1,n2"), SLURM).transport.kind == "srun"
    assert find(NodeOptions(hosts="n1,other"), SLURM).transport.kind == "ssh"
    assert find(NodeOptions(hosts="n1,n2", remote_start="ssh"), SLURM).transport.kind == "ssh"


def test_each_node_gets_the_words_without_those_about_nodes():
    words = [
        "train",
        "c.yaml",
        "--hosts",
        "a,b",
        "--max-steps=2",
        "--remote_start=ssh",
        "--export",
        "A=b c",
        "--",
        "--x",
    ]
    assert find(NodeOptions(hosts="a,b"), words=words).words == ["train", "c.yaml", "--max-steps=2", "--", "--x"]


@pytest.mark.parametrize(
    ("asked", "launch", "env", "said"),
    [
        (NodeOptions(hosts="a", hostfile="f"), {}, {}, "--hosts and --hostfile both name the nodes"),
        (NodeOptions(hosts="a,b"), {"node_rank": 0}, {}, "--node-rank with --hosts"),
        (NodeOptions(hosts="a,b"), {"rdzv_endpoint": "a:1"}, {}, "--rdzv-endpoint with --hosts"),
        (NodeOptions(hosts="a,b"), {"nnodes": "3"}, {}, "--nnodes 3, but --hosts names 2 node(s)"),
        (NodeOptions(remote_start="rsh"), {}, {}, "--remote-start rsh: expected one of auto, ssh"),
        (NodeOptions(remote_start="ssh"), {}, {}, "--remote-start is for starting other nodes"),
        (NodeOptions(exports=("A",)), {"nnodes": "2", "node_rank": 0}, {}, "--export is for starting other nodes"),
        (NodeOptions(hosts="a", remote_start="srun"), {}, {}, "--remote-start srun: this is not inside a Slurm job"),
        (NodeOptions(remote_start="pbsdsh"), {}, SLURM, "--remote-start pbsdsh: this is Slurm job 17"),
        (NodeOptions(), {"nnodes": "4"}, SLURM, "--nnodes 4 inside of Slurm job 17, which has 3 node(s)"),
        (NodeOptions(hosts="a", python="py\nthon"), {}, {}, "--python 'py\\nthon': expected the path"),
        (NodeOptions(hosts="a", python="-c"), {}, {}, "--python '-c': expected the path"),
    ],
)
def test_contradictions_are_refused(asked, launch, env, said):
    with pytest.raises(UsageError) as error:
        find(asked, env, **launch)
    assert said in str(error.value)
