"""Two nodes train together and leave a complete record, which starts the run again.

Settings of the network reach every rank, and must be equal where it matters."""

import json
import subprocess
import sys

import yaml

from allranks.observe import RunDir, read_events
from allranks.observe.events import StepEvent
from tests.cluster.conftest import ENVIRONMENT, Run, largest_difference
from tests.cluster.test_launch import finish
from tests.ports import free_port

KEYS = {
    "max_steps": 4,
    "fsdp_version": 2,
    "fsdp_config": {"reshard_after_forward": True},
    "network": {"interface": "lo", "infiniband": "off"},
}


def test_two_nodes_with_network_settings_and_again_from_the_manifest(base_config, tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text(yaml.safe_dump(base_config | KEYS | {"output_dir": str(tmp_path / "run")}))

    def start(node, *arguments, **variables):
        return subprocess.Popen(
            [sys.executable, "-m", "allranks", "train", *arguments, "--node-rank", str(node)],
            env=ENVIRONMENT | {"WANDB_API_KEY": "0123456789abcdef" * 2} | variables,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        )

    place = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port"]

    by_hand = [str(config), *place, str(free_port())]
    launchers = [start(0, *by_hand), start(1, *by_hand, NCCL_BUFFSIZE="2097152")]
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [3, 3], outputs
    for output in outputs:
        assert "NCCL_BUFFSIZE must be the same on all nodes, but is not set (default 4194304) on node 0" in output

    by_hand = [str(config), *place, str(free_port())]
    same = {"NCCL_BUFFSIZE": "2097152", "NCCL_TIMEOUT": "1800", "NCCL_NOTE": "0123456789abcdef" * 2}
    launchers = [start(node, *by_hand, **same) for node in (0, 1)]
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    for output in outputs:
        assert "network:    interface lo (127.0.0.1)" in output and "GLOO_SOCKET_IFNAME=lo" in output
        assert "NCCL_TIMEOUT: there is no such variable" in output and "`network.timeout`" in output
    run = RunDir(tmp_path / "run")
    assert_complete(run, outputs)
    text = run.manifest.read_text()
    assert "0123456789abcdef" * 2 not in text
    assert json.loads(text)["nodes"]["1"]["environment"]["GLOO_SOCKET_IFNAME"] == "lo"

    again = ["--from-manifest", str(run.manifest), "--master-port", str(free_port())]
    launchers = [start(node, *again) for node in (0, 1)]
    outputs = finish(*launchers)
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert "NCCL_BUFFSIZE=2097152, as then" in outputs[0] and "2 rank(s) on 2 node(s)" in outputs[0]
    first, second = (Run(0, "", RunDir(tmp_path / name)).losses() for name in ("run", "run-again"))
    assert len(first) == 4 and largest_difference(first, second) == 0


def assert_complete(run: RunDir, outputs: list[str]) -> None:
    """What two nodes of one process each leave of their run, and have shown of it."""
    assert "world size: 2 = 2 node(s) x 1 process(es)" in outputs[0] and "this is node 1" in outputs[1]
    assert "step 4/4" in outputs[0], "rank 0 is shown"
    assert "step 4/4" not in outputs[1], "no other rank is"
    assert run.agent_log(0).exists() and run.agent_log(1).exists()
    assert run.log(1, 1).exists()
    losses = [[e.loss for e in read_events(run.events(rank)) if isinstance(e, StepEvent)] for rank in (0, 1)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]

    manifest = json.loads(run.manifest.read_text())
    assert manifest["config"]["max_steps"] == 4
    assert manifest["command"][1:3] == ["-m", "torch.distributed.run"] and "--node-rank" in manifest["command"]
    assert " ".join(manifest["command"]) in outputs[0], "the command shown is the command run"
    assert manifest["data_fingerprint"] and manifest["packages"]["torch"]
    assert [account["processes"] for account in manifest["nodes"].values()] == [1, 1]
    commands = [manifest["nodes"][node]["command"] for node in ("0", "1")]
    assert commands[0] == manifest["command"] and " ".join(commands[1]) in outputs[1]
    assert json.loads((run.logs(1) / "launch.json").read_text())["command"] == commands[1]
