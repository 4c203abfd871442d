"""What the probe found on a node, read back as a typed value, whichever version of the probe wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.cluster.tolerant import plain, read_table

Other = Mapping[str, object]
"""Keys that this version does not know, as they came."""


@dataclass(frozen=True)
class Address:
    """One IP address of an interface; `prefix` is the number of the network's leading bits."""

    address: str | None = None
    prefix: int | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkInterface:
    """`kind`: physical, bond, bridge, vlan, veth, loopback, infiniband or virtual. `default_route`: whether one leads
    through it."""

    name: str | None = None
    state: str | None = None
    carrier: bool | None = None
    speed_mbits: int | None = None
    mtu: int | None = None
    driver: str | None = None
    kind: str | None = None
    default_route: bool | None = None
    addresses: Sequence[Address] | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Gid:
    """One entry of a port's table of GIDs; `type` as the kernel writes it: "IB/RoCE v1" or "RoCE v2"."""

    index: int | None = None
    gid: str | None = None
    type: str | None = None
    netdev: str | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class InfinibandPort:
    """One port of an InfiniBand or RoCE adapter. `link_layer`: InfiniBand or Ethernet (then it is RoCE).

    `counters` count from when the driver was loaded: only what grows says something. `selected`: NCCL_IB_HCA names it,
    or is not set.
    """

    device: str | None = None
    port: int | None = None
    state: str | None = None
    physical_state: str | None = None
    rate_gbits: float | None = None
    link_layer: str | None = None
    firmware: str | None = None
    model: str | None = None
    netdev: str | None = None
    subnet: str | None = None
    gids: Sequence[Gid] | None = None
    counters: Mapping[str, int] | None = None
    selected: bool | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Process:
    """A process, and the bytes of a GPU's memory that it holds, where that was asked. In a container neither its user
    nor its command need be known."""

    pid: int | None = None
    user: str | None = None
    command: str | None = None
    """The program, and the script or module that it runs; no arguments, which may be secret."""
    used: int | None = None
    seconds: float | None = None
    """Its age."""
    orphan: bool | None = None
    """Whether its parent has ended: what started it is gone."""
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Gpu:
    """Memory in bytes, temperature in degrees Celsius. `index` is the driver's, whatever CUDA_VISIBLE_DEVICES says."""

    index: int | None = None
    vendor: str | None = None
    model: str | None = None
    uuid: str | None = None
    pci: str | None = None
    memory: int | None = None
    used: int | None = None
    processes: Sequence[Process] | None = None
    driver: str | None = None
    ecc_uncorrected: int | None = None
    """Since the driver was loaded."""
    remapped_pending: bool | None = None
    remapped_failed: bool | None = None
    retired_pages_pending: bool | None = None
    throttled: Sequence[str] | None = None
    """Reasons that hold now, other than that it is idle or that its clocks were set by an administrator."""
    mig: str | None = None
    pcie_width: int | None = None
    pcie_width_max: int | None = None
    pcie_generation: int | None = None
    """An idle GPU lowers it to save power: less than the greatest is no fault by itself."""
    pcie_generation_max: int | None = None
    nvlinks_active: int | None = None
    nvlinks: int | None = None
    temperature: float | None = None
    fabric: str | None = None
    """How far its registration with the fabric manager has come: "Completed" where it is done."""
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class GpuSystem:
    """What holds for all GPUs of a node. `num_present` are those that the PCI bus shows, `xids` lines of the kernel."""

    driver: str | None = None
    cuda: str | None = None
    visible: str | None = None
    num_present: int | None = None
    num_device_nodes: int | None = None
    """In /dev: a container that was given two of eight GPUs has two."""
    nvidia_peermem: bool | None = None
    fabric_manager: str | None = None
    acs: bool | None = None
    xids: Sequence[str] | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class System:
    """`container`: what the node's processes run in, such as docker; None where nothing says that it is one."""

    kernel: str | None = None
    os: str | None = None
    machine: str | None = None
    container: str | None = None
    boot_id: str | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Cpu:
    """`num_usable`: by this process's affinity. `cgroup_cores`: how many cores' time its cgroup has."""

    model: str | None = None
    num_cores: int | None = None
    num_usable: int | None = None
    num_numa_nodes: int | None = None
    cgroup_cores: float | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Memory:
    """Bytes. `cgroup_limit` is the smallest that holds; None where none is set."""

    total: int | None = None
    available: int | None = None
    cgroup_limit: int | None = None
    cgroup_used: int | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class SharedMemory:
    """/dev/shm, in bytes."""

    total: int | None = None
    free: int | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Clock:
    """`synchronized`: whether the kernel knows of something that keeps it right."""

    synchronized: bool | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Limits:
    """The soft limits of a process that ssh or the scheduler starts; `memlock` in bytes. -1: unlimited."""

    memlock: int | None = None
    nofile: int | None = None
    nproc: int | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class NodePath:
    """A path that the run uses, and the filesystem that it lies or would lie on: one that does not exist yet is told
    by the nearest folder above it that does. `network`: the filesystem is of a kind that several nodes mount."""

    path: str | None = None
    purpose: str | None = None
    exists: bool | None = None
    mount: str | None = None
    type: str | None = None
    network: bool | None = None
    device: str | None = None
    total: int | None = None
    free: int | None = None
    inodes: int | None = None
    free_inodes: int | None = None
    readable: bool | None = None
    writable: bool | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Python:
    """The interpreter that the probe ran in."""

    executable: str | None = None
    version: str | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Package:
    """An installed package; both None where it is not installed."""

    version: str | None = None
    path: str | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class Code:
    """Where allranks lies; `dirty` is a hash of what differs from the commit, "" where nothing does; `digest` one of
    all Python files there, with or without a commit."""

    path: str | None = None
    commit: str | None = None
    dirty: str | None = None
    digest: str | None = None
    other: Other = field(default_factory=dict)


@dataclass(frozen=True)
class NodeReport:
    """All that the probe found on one node. None is not known, at every place; an empty list is none there.

    `unanswered` are sources that did not answer, and why. `unreadable` are the places whose values no version writes;
    they are None, or left out of their list, above. Bytes and seconds throughout.
    """

    version: int | None = None
    host: str | None = None
    seconds: float | None = None
    """What probing took."""
    time: float | None = None
    """This node's clock when it was done, in seconds since 1970."""
    uid: int | None = None
    withheld: Mapping[str, str] = field(default_factory=dict)
    """What only root could have read: the place above, and why."""
    unanswered: Mapping[str, str] = field(default_factory=dict)
    system: System = System()
    interfaces: Sequence[NetworkInterface] | None = None
    names: Mapping[str, Sequence[str]] | None = None
    """The addresses of each name that was asked for, () where it has none."""
    infiniband: Sequence[InfinibandPort] | None = None
    gpus: Sequence[Gpu] | None = None
    gpu_system: GpuSystem = GpuSystem()
    cpu: Cpu = Cpu()
    memory: Memory = Memory()
    shm: SharedMemory = SharedMemory()
    limits: Limits = Limits()
    clock: Clock = Clock()
    paths: Sequence[NodePath] | None = None
    python: Python = Python()
    packages: Mapping[str, Package] | None = None
    code: Code = Code()
    environment: Mapping[str, str] | None = None
    leftovers: Sequence[Process] | None = None
    unreadable: Sequence[str] = ()
    other: Other = field(default_factory=dict)

    @classmethod
    def from_message(cls, message: object) -> NodeReport:
        """The report that any version of the probe wrote. Raises ValueError for what is no table, and nothing else."""
        report, unreadable = read_table(cls, message, "a report")
        return replace(report, unreadable=(*report.unreadable, *unreadable))

    def to_message(self) -> dict[str, Any]:
        """Plain JSON types, without what is not known; what this version does not know is handed on as it came."""
        return plain(self)
