"""One config, started in every way on a cluster: the same losses as one process, and nothing left behind."""

import sys
from collections.abc import Callable, Sequence

import pytest

from allranks.verify.run import verify_run
from tests.cluster.conftest import largest_difference
from tests.cluster.lab import Lab
from tests.cluster.training import make_training

TOLERANCE = 1e-5
STEPS = {"max_steps": 6}
PORT = "29517"

PYTHON = sys.executable
TRAIN = (PYTHON, "-m", "allranks", "train", "c.yaml")
MODULE = ("-m", "allranks.train", "c.yaml")
MASTER = ("--master-addr", "node0", "--master-port", PORT)
TORCHRUN = (PYTHON, "-m", "torch.distributed.run")
ACCELERATE = (PYTHON, "-m", "accelerate.commands.launch")

Command = Sequence[object]


def by_hand(nodes: int, *more: object) -> list[Command]:
    place = ("--nnodes", nodes, "--master-addr", "node0", "--master-port", PORT)
    return [(*TRAIN, *place, "--node-rank", rank, *more) for rank in range(nodes)]


# What is typed on node 0, node 1, …, and the number of ranks that it makes.
WAYS: dict[str, tuple[list[Command], int]] = {
    "static": (by_hand(3), 3),
    "unequal nodes": (
        [
            (*command, "--nproc-per-node", rank + 1, "--preflight.ignore", "start.processes")
            for rank, command in enumerate(by_hand(2))
        ],
        3,
    ),
    "c10d": ([(*TRAIN, "--nnodes", 2, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"node0:{PORT}")] * 2, 2),
    "accelerate": (by_hand(2, "--launcher", "accelerate"), 2),
    "deepspeed": (by_hand(2, "--launcher", "deepspeed"), 2),
    "ssh": ([(*TRAIN, "--hosts", "node[0-2]")], 3),
    "own torchrun": (
        [
            # As in Axolotl's older form, `torchrun … -m axolotl.cli.train`; all others start `-m allranks.train`.
            (*TORCHRUN, "--nnodes", 2, "--node-rank", rank, *MASTER, "-m", "allranks.cli.train", "c.yaml")
            for rank in (0, 1)
        ],
        2,
    ),
    "own accelerate": (
        [
            (
                *(*ACCELERATE, "--multi_gpu", "--num_machines", 2, "--num_processes", 2, "--machine_rank", rank),
                *("--main_process_ip", "node0", "--main_process_port", PORT, *MODULE),
            )
            for rank in (0, 1)
        ],
        2,
    ),
    "slurm: allranks in an allocation": ([("salloc", "-Q", "-N", 3, *TRAIN)], 3),
    "slurm: own srun": ([("srun", "-N", 2, "-n", 2, PYTHON, *MODULE)], 2),
    "ray": ([(*TRAIN, "--launcher", "ray", "--ray-address", "auto", "--ray-num-workers", 3)], 3),
    "own mpirun": (
        [
            (
                *("mpirun.openmpi", "--allow-run-as-root", "-np", 2, "--host", "node0,node1", "--wdir", "."),
                *(
                    "--mca",
                    "btl",
                    "tcp,self",
                    "--mca",
                    "btl_tcp_if_include",
                    "eth0",
                    "--mca",
                    "oob_tcp_if_include",
                    "eth0",
                ),
                *("-x", "MASTER_ADDR=node0", "-x", f"MASTER_PORT={PORT}", "-x", "OMP_NUM_THREADS", PYTHON, *MODULE),
            )
        ],
        2,
    ),
}


# Nodes started by hand train to the end in test_record.py, a job of Slurm's trains to these losses in test_submit.py,
# Ray's ranks do in test_ray.py, and what accelerate launch hands to its ranks is the same whoever calls it.
THOROUGH = {"static", "unequal nodes", "own accelerate", "slurm: allranks in an allocation", "ray"}


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=[pytest.mark.thorough] if way in THOROUGH else []) for way in WAYS]
)
def test_every_way_of_starting_trains_to_the_same_losses(
    lab: Lab, base_config: dict, losses_alone: Callable[..., dict[int, float]], way: str
) -> None:
    if way.startswith("slurm"):
        lab.slurm()
    if way == "ray":
        lab.ray()
    training = make_training(lab, way, base_config, **STEPS)
    commands, world_size = WAYS[way]
    training.finish(training.start(node, command) for node, command in enumerate(commands))
    assert [path.name for path in sorted(training.run.all_events())] == [
        f"rank-{rank:05}.jsonl" for rank in range(world_size)
    ]
    for rank in range(world_size):
        assert largest_difference(training.losses(rank), losses_alone(**STEPS)) < TOLERANCE
    proof, checks = verify_run(training.run.path)
    found = {check.name: check for check in checks}
    assert [check for check in found.values() if check.result != "ok"] == []
    assert {rank.node for rank in proof.ranks} == set(range(len({rank.host for rank in proof.ranks})))
    assert found["transports"].said.endswith("talk over sockets on eth0")
    training.wait_until_gone()
