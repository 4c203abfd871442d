"""The record of a run starts it again; settings of the network reach every rank, and must be equal where it matters."""

import json
import subprocess
import sys

import yaml

from allranks.observe import RunDir
from tests.cluster.conftest import ENVIRONMENT, Run, free_port, largest_difference
from tests.cluster.test_launch import finish


def test_two_nodes_with_network_settings_and_again_from_the_manifest(base_config, tmp_path):
    config = tmp_path / "c.yaml"
    keys = {"output_dir": str(tmp_path / "run"), "max_steps": 4, "network": {"interface": "lo", "infiniband": "off"}}
    config.write_text(yaml.safe_dump(base_config | keys))

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
