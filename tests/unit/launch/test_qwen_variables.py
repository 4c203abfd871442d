import pytest

from allranks.errors import UsageError
from allranks.launch.qwen_variables import launch_words

TWO = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1"}


def test_the_scripts_variables_are_options_of_train():
    words = launch_words({**TWO, "MASTER_PORT": "7000", "GPUS_PER_NODE": "4", "HOME": "/root"}, ())
    assert words == [
        *("--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "7000"),
        *("--nproc-per-node", "4"),
    ]


def test_the_port_is_the_scripts_own_if_none_is_given():
    assert launch_words(TWO, ())[-2:] == ["--master-port", "6001"]
    assert "--master-port" not in launch_words(TWO, ["master_port"])


def test_alone_by_default():
    assert launch_words({}, ()) == []
    assert launch_words({"GPUS_PER_NODE": "2"}, ()) == ["--nproc-per-node", "2"]
    assert launch_words({"NNODES": "1", "NODE_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}, ()) == []


def test_the_command_line_wins():
    words = launch_words({**TWO, "GPUS_PER_NODE": "8"}, ["nnodes", "node_rank", "nproc_per_node"])
    assert words == ["--master-addr", "10.0.0.1", "--master-port", "6001"]
    assert launch_words(TWO, ["rdzv_endpoint", "nnodes"]) == []
    assert launch_words({**TWO, "GPUS_PER_NODE": "8"}, ["hosts"]) == ["--nproc-per-node", "8"]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"NODE_RANK": "1"}, "NODE_RANK=1 is set and NNODES is not: each node would train alone"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "6001"}, "MASTER_ADDR=a, MASTER_PORT=6001 is set and NNODES is not"),
        ({"NNODES": "1", "NODE_RANK": "1"}, "a single node has rank 0"),
        ({"NNODES": "2"}, "NNODES=2 also needs NODE_RANK (0 on the first node, then 1, 2, …) and MASTER_ADDR"),
        ({"NNODES": "2", "NODE_RANK": "0"}, "NNODES=2 also needs MASTER_ADDR"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "NNODES=2 also needs NODE_RANK"),
        ({"NNODES": "2", "MASTER_ADDR": "a", "RANK": "1"}, "RANK=1 is set and NODE_RANK is not"),
        ({"RANK": "0"}, "RANK=0 is set and NODE_RANK is not"),
        ({**TWO, "NNODES": "two"}, "NNODES='two': expected a whole number of at least 1"),
        ({**TWO, "NNODES": "0"}, "NNODES='0'"),
        ({**TWO, "NODE_RANK": "-1"}, "NODE_RANK='-1'"),
        ({**TWO, "MASTER_PORT": "http"}, "MASTER_PORT='http'"),
        ({**TWO, "MASTER_PORT": "66001"}, "MASTER_PORT=66001: expected 1 to 65535"),
        ({**TWO, "NODE_RANK": "2"}, "NODE_RANK=2 with NNODES=2: node ranks go from 0 to 1"),
        ({"GPUS_PER_NODE": "gpu:8"}, "GPUS_PER_NODE='gpu:8'"),
        (
            {**TWO, "NODE_RANK": "0", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "2"},
            "NODE_RANK=0, but Slurm says that this is node 1",
        ),
    ],
)
def test_a_wrong_environment_is_refused(env, message):
    with pytest.raises(UsageError) as error:
        launch_words(env, ())
    assert message in str(error.value)


def test_slurms_own_number_may_be_handed_on_in_a_task():
    slurm = {"SLURM_STEP_ID": "0", "SLURM_NODEID": "1", "SLURM_NNODES": "2"}
    assert "--node-rank" in launch_words({**TWO, **slurm}, ())


def test_more_processes_than_gpus_are_refused_by_the_variables_name(monkeypatch):
    monkeypatch.setattr("allranks.launch.qwen_variables.count_gpus", lambda: 2)
    with pytest.raises(UsageError, match=r"GPUS_PER_NODE=4, but this node has 2 visible GPU"):
        launch_words({"GPUS_PER_NODE": "4"}, ())
    assert launch_words({"GPUS_PER_NODE": "2"}, ()) == ["--nproc-per-node", "2"]
