"""Ray on a lab: the head on node0, a worker node on every other, two CPUs each."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path

from tests.cluster.lab.node import Node

PORT = 6379
PROGRAM = Path(sys.executable).with_name("ray")
READY_SECONDS = 120
# Ray would take a third of the machine's memory for its object store on every node.
OPTIONS = ["--num-cpus=2", "--object-store-memory=100000000", "--disable-usage-stats"]


class Ray:
    """`address` is where a driver on any node finds the cluster."""

    def __init__(self, nodes: list[Node]):
        self._nodes = nodes
        self.address = f"{nodes[0].ip}:{PORT}"

    def start(self, nodes: list[Node]) -> None:
        """Start Ray on `nodes`, which have none; all nodes anew, if the head is one. Wait until it is ready."""
        head = self._nodes[0]
        if head in nodes:
            self.stop()
            nodes = self._nodes
        if head in nodes:
            arguments = ["--head", f"--port={PORT}", "--include-dashboard=false"]
            head.daemon([PROGRAM, "start", *arguments, f"--node-ip-address={head.ip}", *OPTIONS])
        joining = [
            node.begin_daemon([PROGRAM, "start", f"--address={self.address}", f"--node-ip-address={node.ip}", *OPTIONS])
            for node in nodes
            if node is not head
        ]
        for await_start in joining:
            await_start()
        self._await_all()

    def stop(self) -> None:
        """End Ray on all nodes."""
        for node in self._nodes:
            for process in node.daemons():
                if re.search(r"/ray/|\bray\.|ray::", " ".join(process.argv)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process.pid, signal.SIGKILL)
            node.run(["rm", "-rf", "/tmp/ray"])

    def restore(self) -> None:
        """Wait until all nodes are there."""
        self._await_all()

    def _await_all(self) -> None:
        code = (
            "import json, ray; ray.init(address='auto', log_to_driver=False, logging_level='error'); "
            "print(json.dumps([node['NodeManagerAddress'] for node in ray.nodes() if node['Alive']]))"
        )
        deadline = time.monotonic() + READY_SECONDS
        while True:
            asked = self._nodes[0].run([sys.executable, "-c", code])
            alive = json.loads(asked.stdout.splitlines()[-1]) if asked.returncode == 0 else []
            if {node.ip for node in self._nodes} <= set(alive):
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the Ray cluster is not ready: {alive}\n{asked.stderr}")
            time.sleep(0.5)
