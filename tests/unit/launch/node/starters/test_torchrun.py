from dataclasses import replace
from pathlib import Path

from torch.distributed.run import parse_args

from allranks.launch.node.starters import Place
from allranks.launch.node.starters.threads import thread_variables
from allranks.launch.node.starters.torchrun import restart_variables, start_command
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import Program, engine
from allranks.observe import RunDir

ENGINE = engine(Path("run/config.yaml"))


def as_torchrun_reads_it(options, program=ENGINE):
    command = start_command(resolve(options, num_gpus=0), program, Place(RunDir("run"), 0, (1,))).command
    assert command[1:3] == ["-m", "torch.distributed.run"]
    return parse_args(command[3:])


def test_torchrun_understands_a_static_launch():
    args = as_torchrun_reads_it(LaunchOptions(nnodes="2", node_rank=1, master_addr="10.0.0.1", nproc_per_node=4))
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert (args.rdzv_backend, args.master_addr, args.master_port) == ("static", "10.0.0.1", 29500)
    assert args.module and args.training_script == "allranks.train"
    assert args.training_script_args == ["run/config.yaml", "--resolved"]


def test_torchrun_understands_an_elastic_launch():
    args = as_torchrun_reads_it(
        LaunchOptions(
            nnodes="2:3",
            rdzv_backend="c10d",
            rdzv_endpoint="head:1234",
            rdzv_id="job",
            max_restarts=3,
            launcher_args=("--rdzv-conf", "join_timeout=60"),
        )
    )
    assert (args.nnodes, args.rdzv_backend, args.rdzv_endpoint) == ("2:3", "c10d", "head:1234")
    assert (args.rdzv_id, args.max_restarts, args.rdzv_conf) == ("job", 3, "join_timeout=60")


def test_torchrun_waits_for_an_elastic_launch_as_long_as_we_would():
    elastic = LaunchOptions(nnodes="2", rdzv_backend="c10d", rdzv_endpoint="h", max_restarts=1, join_seconds=90.5)
    assert as_torchrun_reads_it(elastic).rdzv_conf == "join_timeout=91"
    given = replace(elastic, launcher_args=("--rdzv_conf=is_host=1,last_call_timeout=5",))
    assert as_torchrun_reads_it(given).rdzv_conf == "is_host=1,last_call_timeout=5,join_timeout=91"
    assert as_torchrun_reads_it(replace(elastic, max_restarts=0)).rdzv_conf == ""


def test_torchrun_understands_any_program():
    def parsed(*program):
        args = as_torchrun_reads_it(LaunchOptions(nproc_per_node=2), Program(*program))
        return args.module, args.no_python, args.training_script, args.training_script_args

    assert parsed("module", "axolotl.cli.train", ("c.yaml", "--x")) == (
        *(True, False, "axolotl.cli.train"),
        ["c.yaml", "--x"],
    )
    assert parsed("script", "train.py", ("--nnodes", "7")) == (False, False, "train.py", ["--nnodes", "7"])
    assert parsed("executable", "./train", ()) == (False, True, "./train", [])


def test_ranks_share_the_cores_unless_the_user_said_otherwise():
    launch = resolve(LaunchOptions(nproc_per_node=1000), num_gpus=0)
    assert thread_variables(launch, {}) == {"OMP_NUM_THREADS": "1"}
    assert thread_variables(launch, {"OMP_NUM_THREADS": "7"}) == {}


def test_restarts_do_not_share_the_agents_store():
    launch = resolve(LaunchOptions(nproc_per_node=2, max_restarts=1), num_gpus=0)
    assert restart_variables(launch, {}) == {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def test_of_the_restarts_those_that_are_done_are_no_longer_torchruns():
    launch = replace(resolve(LaunchOptions(max_restarts=3), num_gpus=0), num_restarts=2)
    command = start_command(launch, ENGINE, Place(RunDir("run"), 0, (1,))).command
    assert parse_args(command[3:]).max_restarts == 1
