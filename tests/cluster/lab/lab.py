"""A cluster on this machine: nodes with an address, name, disk, process tree and sshd of their own, on one switch."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.cluster.lab import ground
from tests.cluster.lab.identity import write_identities
from tests.cluster.lab.network import Switch
from tests.cluster.lab.node import Node
from tests.cluster.lab.pbs import Pbs
from tests.cluster.lab.ray import Ray
from tests.cluster.lab.slurm import Slurm

NETWORK, SECOND_NETWORK = "10.77.0", "10.78.0"
DISK_SIZE = "2g"
REPOSITORY = Path(__file__).resolve().parents[3]
# Folders that a node covers with its own: what lies below them on the host would not be visible.
COVERED = ("/tmp", "/run", "/dev", "/proc", "/sys")


class Lab:
    """`with Lab(nodes=3) as lab: lab.node(1).run(["hostname"])`. Needs root; see `missing`.

    `shared` is a folder that all nodes and the host see at the same path. Everything else that a node writes stays on
    that node, the repository included: a node sees the host's files as they were when it started.
    """

    def __init__(self, nodes: int = 3):
        if not 1 <= nodes <= 200:
            raise ValueError(f"a lab has 1 to 200 nodes, not {nodes}")
        self._num_nodes = nodes
        self.nodes: list[Node] = []
        self._slurm: Slurm | None = None
        self._pbs: Pbs | None = None
        self._ray: Ray | None = None

    def __enter__(self) -> Lab:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        if reason := ground.missing():
            raise RuntimeError(reason)
        ground.remove_stale()
        self.name = ground.claim()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End every process of the lab and remove its files; also when it started only in part."""
        ground.remove(self.name)
        for node in self.nodes:
            node.reap()

    def _start(self) -> None:
        files, cgroup = ground.FILES / self.name, ground.cgroups() / self.name
        self.shared = files / "shared"
        self.shared.mkdir()
        names = [f"node{index}" for index in range(self._num_nodes)]
        addresses = [f"{NETWORK}.{index + 1}" for index in range(self._num_nodes)]
        folders = [files / name for name in names]
        for folder in folders:
            folder.mkdir()
        write_identities(folders, names, addresses)
        self._switch = Switch(cgroup / "switch")
        self.nodes = [
            Node(name, address, folder, cgroup / name)
            for name, address, folder in zip(names, addresses, folders, strict=True)
        ]
        self._start_nodes(self.nodes)

    def _start_nodes(self, nodes: list[Node]) -> None:
        for node in nodes:
            node.begin(self.shared, DISK_SIZE, _hidden_folders())
        for node in nodes:
            node.await_ready()
            self._switch.plug(self.nodes.index(node), node.init_pid, node.ip)
        for service in self._services():
            service.start(nodes)

    def node(self, index: int) -> Node:
        return self.nodes[index]

    def slurm(self) -> Slurm:
        """Slurm on all nodes, started at the first call."""
        if self._slurm is None:
            self._slurm = Slurm(self.nodes)
            self._slurm.start(self.nodes)
        return self._slurm

    def pbs(self) -> Pbs:
        """A stand-in for PBS on all nodes, started at the first call."""
        if self._pbs is None:
            self._pbs = Pbs(self.nodes)
            self._pbs.start(self.nodes)
        return self._pbs

    def ray(self) -> Ray:
        """A Ray cluster of all nodes, started at the first call; it takes 800 MB a node until the lab ends."""
        if self._ray is None:
            self._ray = Ray(self.nodes)
            self._ray.start(self.nodes)
        return self._ray

    def _services(self) -> list[Slurm | Pbs | Ray]:
        return [service for service in (self._slurm, self._pbs, self._ray) if service is not None]

    # Faults. `restore` undoes them all.

    def limit_cpu(self, index: int, cores: float) -> None:
        """Let node `index` have so much of a core, and have it before others on this machine. Errors:
        NotImplementedError where the kernel's cgroups cannot."""
        self.nodes[index].limit_cpu(cores)

    def limit_memory(self, index: int, num_bytes: int) -> None:
        """Let node `index` have so much memory more: the kernel kills a process of it for more. Errors:
        NotImplementedError where the kernel's cgroups cannot."""
        self.nodes[index].limit_memory(num_bytes)

    def cut(self, index: int) -> None:
        """Pull node `index`'s cable: nothing arrives, nothing is refused."""
        self._switch.set_link(index, self.nodes[index].init_pid, up=False)

    def heal(self, index: int) -> None:
        """Put the cable back, and undo filter, drop_port, refuse_port, lose, limit and delay."""
        node = self.nodes[index]
        self._switch.set_link(index, node.init_pid, up=True)
        node.run(["iptables", "-F"], check=True)
        self._switch.set_rate(index, node.init_pid, None)

    def drop_port(self, index: int, port: int) -> None:
        """What is sent to this TCP port of the node vanishes, as behind most firewalls."""
        self.filter(index, "INPUT", "-p", "tcp", "--dport", str(port), "-j", "DROP")

    def refuse_port(self, index: int, port: int) -> None:
        """A connection to this TCP port of the node is refused."""
        self.filter(index, "INPUT", "-p", "tcp", "--dport", str(port), "-j", "REJECT", "--reject-with", "tcp-reset")

    def lose(self, index: int, probability: float) -> None:
        """Of the packets to and from the node, this share is lost."""
        for chain in ("INPUT", "OUTPUT"):
            chance = ["-m", "statistic", "--mode", "random", "--probability", str(probability)]
            self.filter(index, chain, "!", "-i" if chain == "INPUT" else "-o", "lo", *chance, "-j", "DROP")

    def limit(self, index: int, rate: str, *, second: bool = False) -> None:
        """Limit both directions of the node's cable, in tc's words: 1gbit, 10mbit; or of its second one."""
        self._switch.set_rate(index, self.nodes[index].init_pid, rate, second=second)

    def second_network(self, *indices: int) -> None:
        """Give these nodes an eth1 too, in a network of its own: 10.78.0.1, .2, …; until `restore`."""
        for index in indices:
            self._switch.plug_second(index, self.nodes[index].init_pid, f"{SECOND_NETWORK}.{index + 1}")

    def delay(self, index: int, time: str) -> None:
        """Delay each direction of the node's cable, in tc's words: 20ms. Errors: NotImplementedError without netem."""
        self._switch.set_delay(index, self.nodes[index].init_pid, time)

    def freeze(self, index: int) -> None:
        self.nodes[index].freeze()

    def thaw(self, index: int) -> None:
        self.nodes[index].thaw()

    def kill(self, index: int) -> None:
        """Crash a node: all its processes end at once, and the peers' connections are closed."""
        self.nodes[index].kill()
        self._switch.unplug(index)  # its kernel would answer a little longer

    def power_off(self, index: int) -> None:
        """Like kill, but the peers hear nothing: their connections stay open."""
        self.cut(index)
        self.kill(index)

    def restart(self, index: int) -> None:
        """A fresh node with the same name, address and keys; what it wrote is gone."""
        self.kill(index)
        self._start_nodes([self.nodes[index]])

    def restore(self) -> None:
        """Undo all faults, end what still runs on the nodes, and start anew those that are down or were written to."""
        for index, node in enumerate(self.nodes):
            self._switch.unplug_second(index)
            if node.alive and not node.dirty:
                node.thaw()
                node.limit_cpu(None)
                node.limit_memory(None)
                self.heal(index)
                node.end_processes()
        dirty = [node for node in self.nodes if node.dirty or not node.alive]
        for node in dirty:
            node.kill()
        if dirty:
            self._start_nodes(dirty)
        for service in self._services():
            service.restore()

    def filter(self, index: int, *rule: str) -> None:
        """Append a rule to the node's firewall, in iptables' words; `heal` takes it away."""
        self.nodes[index].run(["iptables", "-A", *rule], check=True)


def _hidden_folders() -> list[Path]:
    """Of the repository and the Python that runs this, what a node would not see: on another disk, or below /tmp."""
    root = Path("/").stat().st_dev
    folders = dict.fromkeys((REPOSITORY, Path(sys.prefix), Path(sys.base_prefix)))
    return [
        path
        for path in folders
        if path.stat().st_dev != root or str(path).startswith(tuple(f"{name}/" for name in COVERED))
    ]
