"""`python -m allranks.train` under launchers that are not allranks' own."""

import subprocess
import sys

import pytest
import yaml

from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, Run, largest_difference
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

SRUN = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "{rank}",
    "SLURM_LOCALID": "{rank}",
    "SLURM_NODEID": "0",
    "SLURM_STEP_NUM_TASKS": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2",
    "SLURM_STEP_NODELIST": "localhost",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "{rank}",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "{rank}",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}


@pytest.fixture
def config(base_config, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**base_config, "max_steps": 4, "output_dir": str(tmp_path / "run")}))
    return path


def start_ranks(config, tmp_path, variables, arguments=((), ())):
    """Two processes with the given variables, as srun, mpirun or a shell script would start them."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "allranks.train", str(config), *arguments[rank]],
            env={**ENVIRONMENT, **variables[rank]},
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in (0, 1)
    ]
    outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
    return [process.returncode for process in processes], outputs


def by_hand(rank, port):
    return {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


@pytest.mark.thorough
def test_torchrun_of_the_users_own(config, losses_alone, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    torchrun += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    done = subprocess.run(
        # As in Axolotl's older form, `torchrun … -m axolotl.cli.train`; start_ranks uses `-m allranks.train`.
        [*torchrun, "-m", "allranks.cli.train", str(config), "--fsdp-version", "2"],
        env=ENVIRONMENT,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    losses = Run(0, "", RunDir(tmp_path / "run")).losses()
    assert largest_difference(losses, losses_alone(max_steps=4)) < 1e-5


# The real ones are in test_ways.py.
@pytest.mark.thorough
@pytest.mark.parametrize("flavour", ["srun", "mpirun"])
def test_srun_and_mpirun_variables(config, tmp_path, flavour):
    port = str(free_port())
    names = SRUN if flavour == "srun" else MPIRUN
    variables = [
        {name: value.format(rank=rank) for name, value in names.items()} | {"MASTER_PORT": port} for rank in (0, 1)
    ]
    codes, outputs = start_ranks(config, tmp_path, variables)
    assert codes == [0, 0], "\n".join(outputs)
    assert "ddp on 2 ranks" in outputs[0]


@pytest.mark.thorough
def test_ranks_with_different_configs_are_stopped_and_the_keys_named(config, tmp_path):
    port = free_port()
    codes, outputs = start_ranks(
        config, tmp_path, [by_hand(rank, port) for rank in (0, 1)], ((), ("--learning-rate", "0.5"))
    )
    assert codes == [3, 3], "\n".join(outputs)
    for output in outputs:
        assert "learning_rate: 0.01 on rank 0" in output and "0.5 on rank 1" in output
        assert "Traceback" not in output and "batch_size:" not in output.partition("the same thing:")[2]


def test_missing_variables_are_named(config, tmp_path):
    variables = [{"RANK": str(rank), "WORLD_SIZE": "2"} for rank in (0, 1)]
    codes, outputs = start_ranks(config, tmp_path, variables)
    assert codes == [2, 2]
    assert "MASTER_ADDR, MASTER_PORT not set" in outputs[0]
