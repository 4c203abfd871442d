"""The switch of a lab: a bridge in a network namespace of its own, and one cable to every node (or a second one, to a
bridge of their own).

Faults: a cable pulled, a port dropped or refused, packets lost, a rate limit; a delay where the kernel has netem (a
switch in user space could delay without it, but would limit the rate as well).
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.cluster.lab.ground import PATH

PREFIX_LENGTH = 24


class Switch:
    """Port `swN` of the switch is node N's; the node's end is its eth0."""

    def __init__(self, cgroup: Path):
        cgroup.mkdir()
        script = 'echo 0 >"$1/cgroup.procs" && exec unshare --net sh -c "echo ready; exec sleep infinity >/dev/null"'
        self._holder = subprocess.Popen(
            ["sh", "-c", script, "sh", cgroup],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
            env={"PATH": PATH},
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != b"ready\n":
            raise RuntimeError("the lab's switch did not start")
        self.ip("link add br0 type bridge forward_delay 0 stp_state 0", "link set br0 up")

    def plug(self, index: int, node_pid: int, address: str) -> None:
        """Lay a new cable from node `index`, whose init is `node_pid`, and give its end the address."""
        self.unplug(index)
        self.ip(
            # A restarted node has the hardware address that its peers remember.
            f"link add sw{index} type veth peer name eth0 address 02:00:0a:4d:00:{index + 1:02x} netns {node_pid}",
            f"link set sw{index} master br0 up",
        )
        _ip(
            node_pid,
            "link set lo up",
            f"address add {address}/{PREFIX_LENGTH} broadcast + dev eth0",
            "link set eth0 up",
        )
        self._await_link(index, node_pid, up=True)

    def unplug(self, index: int) -> None:
        """Remove the cable of a node, which may be gone already with the node."""
        _inside(self._holder.pid, ["ip", "link", "delete", f"sw{index}"], check=False)

    def plug_second(self, index: int, node_pid: int, address: str) -> None:
        """Lay another cable from a node, its eth1, to a second bridge; gone with the node or by `unplug_second`."""
        if "br1" not in _inside(self._holder.pid, ["ip", "-br", "link"]):
            self.ip("link add br1 type bridge forward_delay 0 stp_state 0", "link set br1 up")
        self.ip(f"link add tw{index} type veth peer name eth1 netns {node_pid}", f"link set tw{index} master br1 up")
        _ip(node_pid, f"address add {address}/{PREFIX_LENGTH} broadcast + dev eth1", "link set eth1 up")

    def unplug_second(self, index: int) -> None:
        _inside(self._holder.pid, ["ip", "link", "delete", f"tw{index}"], check=False)

    def set_link(self, index: int, node_pid: int, up: bool) -> None:
        """Pull a node's cable or put it back; when this returns, both ends have noticed."""
        self.ip(f"link set sw{index} {'up' if up else 'down'}")
        self._await_link(index, node_pid, up)

    def _await_link(self, index: int, node_pid: int, up: bool) -> None:
        """Kernels take up to a second to notice a change of carrier."""
        deadline = time.monotonic() + 10
        while True:
            port = _inside(self._holder.pid, ["ip", "-d", "link", "show", f"sw{index}"])
            end = _inside(node_pid, ["ip", "link", "show", "eth0"])
            if up and "state forwarding" in port and "state UP" in port and "state UP" in end:
                return
            if not up and "state disabled" in port and "state UP" not in end:
                return
            if time.monotonic() > deadline:
                raise RuntimeError(f"the link of node{index} does not go {'up' if up else 'down'}:\n{port}\n{end}")
            time.sleep(0.02)

    def set_rate(self, index: int, node_pid: int, rate: str | None, *, second: bool = False) -> None:
        """Limit both directions of a node's cable to `rate` (tc's words: 1gbit, 10mbit); None lifts the limit."""
        port, end = (f"tw{index}", "eth1") if second else (f"sw{index}", "eth0")
        for pid, device in ((self._holder.pid, port), (node_pid, end)):
            _inside(pid, ["tc", "qdisc", "delete", "dev", device, "root"], check=False)
            if rate is not None:
                shape = ["rate", rate, "burst", "256kb", "latency", "50ms"]
                _inside(pid, ["tc", "qdisc", "replace", "dev", device, "root", "tbf", *shape])

    def set_delay(self, index: int, node_pid: int, delay: str) -> None:
        """Delay both directions of a node's cable. Errors: NotImplementedError when the kernel cannot."""
        for pid, device in ((self._holder.pid, f"sw{index}"), (node_pid, "eth0")):
            try:
                _inside(pid, ["tc", "qdisc", "replace", "dev", device, "root", "netem", "delay", delay])
            except RuntimeError as error:
                raise NotImplementedError(f"this kernel has no netem: {error}") from error

    def ip(self, *commands: str) -> None:
        _ip(self._holder.pid, *commands)


def _ip(pid: int, *commands: str) -> None:
    _inside(pid, ["ip", "-batch", "-"], commands="\n".join(commands) + "\n")


def _inside(pid: int, argv: list[str], commands: str = "", check: bool = True) -> str:
    """Run in the network namespace of process `pid`; return what it printed."""
    finished = subprocess.run(
        ["nsenter", "-t", str(pid), "-n", *argv], input=commands, text=True, capture_output=True, env={"PATH": PATH}
    )
    if check and finished.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} {commands}: {finished.stderr}")
    return finished.stdout
