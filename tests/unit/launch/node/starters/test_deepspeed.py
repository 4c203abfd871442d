"""The host file and the command, as DeepSpeed's launcher reads them."""

from pathlib import Path

import pytest

from allranks.errors import UsageError
from allranks.launch.node.starters import Place
from allranks.launch.node.starters.deepspeed import start_command
from allranks.launch.spec.options import LaunchOptions, resolve
from allranks.launch.spec.program import engine
from allranks.observe import RunDir

pytest.importorskip("deepspeed")

SECOND = {"launcher": "deepspeed", "nnodes": "2", "node_rank": 1, "master_addr": "10.0.0.1", "nproc_per_node": 2}


@pytest.fixture
def as_deepspeed_reads_it(tmp_path):
    """Its arguments, and the GPUs that it counts on every node."""

    def read(options, env, processes):
        from deepspeed.launcher.runner import fetch_hostfile, parse_args, parse_inclusion_exclusion

        launch = resolve(LaunchOptions(**options), num_gpus=0)
        start = start_command(launch, engine(Path("c.yaml")), Place(RunDir(tmp_path), 1, processes), env)
        for path, text in start.files.items():
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert start.command[1:3] == ["-m", "deepspeed.launcher.runner"]
        args = parse_args(start.command[3:])
        return args, list(parse_inclusion_exclusion(fetch_hostfile(args.hostfile), args.include, "").values())

    return read


def test_each_node_is_started_by_itself(as_deepspeed_reads_it):
    args, nodes = as_deepspeed_reads_it({**SECOND, "master_port": 4711}, {}, (2, 2))
    assert args.no_ssh and (args.node_rank, args.master_addr, args.master_port) == (1, "10.0.0.1", 4711)
    assert nodes == [[0, 1], [0, 1]]
    assert (
        args.module
        and args.no_local_rank
        and (args.user_script, args.user_args) == ("allranks.train", ["c.yaml", "--resolved"])
    )


def test_the_gpus_that_the_user_chose_are_used(as_deepspeed_reads_it):
    _, nodes = as_deepspeed_reads_it(SECOND, {"CUDA_VISIBLE_DEVICES": "4,6,7"}, (3, 2))
    assert nodes == [[0, 1, 2], [4, 6]]


def test_gpus_that_it_cannot_name_are_refused(tmp_path):
    launch = resolve(LaunchOptions(**SECOND), num_gpus=0)
    place = Place(RunDir(tmp_path), 1, (2, 2))
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES='GPU-1,GPU-2'.*--launcher torchrun"):
        start_command(launch, engine(Path("c")), place, {"CUDA_VISIBLE_DEVICES": "GPU-1,GPU-2"})


def test_alone_it_takes_a_free_port(as_deepspeed_reads_it):
    args, nodes = as_deepspeed_reads_it({"launcher": "deepspeed", "nproc_per_node": 2}, {}, (2,))
    assert args.master_port > 1023 and args.master_addr == "127.0.0.1" and nodes == [[0, 1]]
