"""Accelerate and DeepSpeed as launchers, and files of one's own: two nodes on this machine. Plain launches by each
launcher, on nodes that have a network, are in test_ways.py."""

import json
import subprocess
import sys

import pytest
import yaml

from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, Run, largest_difference
from tests.patience import TIMEOUT_SECONDS
from tests.ports import free_port

KEYS = {
    "max_steps": 4,
    "bf16": False,
    "fsdp_version": 2,
    "fsdp_config": {"reshard_after_forward": True},
}


@pytest.fixture
def nodes(base_config, tmp_path):
    """Start one command of `python -m` for each node; returns the exit codes and outputs. All share a config."""

    def start(*commands: list[str]):
        processes = [
            subprocess.Popen(
                [sys.executable, "-m", *command],
                env=ENVIRONMENT,
                cwd=tmp_path,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )
            for command in commands
        ]
        try:
            outputs = [process.communicate(timeout=TIMEOUT_SECONDS)[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
        return [process.returncode for process in processes], outputs

    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**base_config, **KEYS, "output_dir": "run"}))
    return start


@pytest.fixture
def reference(losses_alone) -> dict[int, float]:
    return losses_alone(**KEYS)


def losses(folder):
    return Run(0, "", RunDir(folder / "run")).losses()


def by_hand(node, port, *words, nproc):
    place = ["--nnodes", "2", "--node-rank", str(node), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return ["allranks", "train", "c.yaml", *place, "--nproc-per-node", str(nproc), *words]


def accelerate_file(folder, node, port, **settings):
    """As multi-node guides print it: without an FSDP section."""
    path = folder / f"accelerate-{node}.yaml"
    place = {"machine_rank": node, "main_process_ip": "127.0.0.1", "main_process_port": port}
    file = {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "num_machines": 2, "num_processes": 2}
    path.write_text(yaml.safe_dump({**file, **place, **settings}))
    return str(path)


@pytest.mark.thorough
def test_a_file_of_ones_own_and_accelerate_launch_by_hand(nodes, reference, tmp_path):
    port = free_port()
    files = [accelerate_file(tmp_path, node, port) for node in (0, 1)]
    ours = [["allranks", "train", "c.yaml", "--launcher", "accelerate", "--", "--config_file", file] for file in files]
    codes, outputs = nodes(*ours)
    assert codes == [0, 0], "\n".join(outputs)
    assert "fsdp on 2 ranks" in outputs[0] and "step 4/4" in outputs[0] and "step 4/4" not in outputs[1]
    assert largest_difference(losses(tmp_path), reference) < 1e-5
    run = RunDir(tmp_path / "run")
    manifest = json.loads(run.manifest.read_text())
    assert " ".join(manifest["command"]) in outputs[0], "the command shown is the command run"
    written = yaml.safe_load((run.launch / "accelerate-node-1.yaml").read_text())
    assert (written["machine_rank"], written["num_processes"]) == (1, 2)
    assert written["fsdp_config"]["fsdp_version"] == 2, "written out whole"

    run.path.rename(tmp_path / "run-of-ours")
    codes, outputs = nodes(
        *(["accelerate.commands.launch", "--config_file", file, "-m", "allranks.train", "c.yaml"] for file in files)
    )
    assert codes == [0, 0], "\n".join(outputs)
    assert largest_difference(losses(tmp_path), reference) < 1e-5


def test_what_contradicts_the_config_is_refused_either_way(nodes, tmp_path):
    section = {"fsdp_version": 2, "fsdp_offload_params": True}
    file = accelerate_file(tmp_path, 0, free_port(), num_machines=1, num_processes=1, fsdp_config=section)
    codes, outputs = nodes(
        ["allranks", "train", "c.yaml", "--launcher", "accelerate", "--accelerate-config", file],
        ["accelerate.commands.launch", "--config_file", file, "-m", "allranks.train", "c.yaml"],
    )
    assert codes[0] == 2 and f"{file}:4: fsdp_config.fsdp_offload_params: true contradicts" in outputs[0]
    assert codes[1] != 0 and "fsdp_offload_params (FSDP_OFFLOAD_PARAMS): true contradicts" in outputs[1]
    assert "Traceback" not in outputs[0]


@pytest.mark.thorough
def test_nodes_with_one_and_two_processes(nodes, reference, tmp_path):
    pytest.importorskip("deepspeed")
    port = free_port()
    codes, outputs = nodes(*(by_hand(node, port, "--launcher", "accelerate", nproc=node + 1) for node in (0, 1)))
    assert codes == [3, 3] and "accelerate starts the same number on every node" in outputs[0], "\n".join(outputs)

    words = ("--launcher", "deepspeed", "--preflight.ignore", "start.processes")
    codes, outputs = nodes(*(by_hand(node, port, *words, nproc=node + 1) for node in (0, 1)))
    assert codes == [0, 0], "\n".join(outputs)
    assert "fsdp on 3 ranks" in outputs[0]
    assert largest_difference(losses(tmp_path), reference) < 1e-5
    assert RunDir(tmp_path / "run").log(1, 2).exists()
