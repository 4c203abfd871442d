"""For each check what it must find on one node of a healthy cluster, and what is nearly that and must pass."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from allranks.cluster.pairs import Unreached
from allranks.cluster.rank_addresses import RankAddress
from allranks.doctor.pairs import Place
from allranks.plan.fit import Expected
from allranks.preflight.check import ClockOffset, Pairs
from tests.planned import expected
from tests.simulated_nodes import GIB, MIB, Cluster

Change = Callable[[Cluster, str], object]


@dataclass(frozen=True)
class Case:
    """`fault` and `near_miss` change a cluster of `kind` at one node. `found`: what the finding's text must contain."""

    check: str
    kind: str
    fault: Change
    near_miss: Change
    found: str
    severity: str = "error"
    wanted: dict[str, Any] | None = None
    also: Callable[[Cluster, str], str] | None = None
    """Another node that the finding names: none of the two is to blame more."""
    all_nodes: bool = False
    """Whether all are named."""


def put(place: str, value: Any) -> Change:
    """A change of the node's report at `limits.memlock`, `gpus.0.used` and the like."""

    def change(cluster: Cluster, node: str) -> None:
        at = cluster.reports[node]
        *way, last = place.split(".")
        for step in way:
            at = at[int(step) if isinstance(at, list) else step]
        at[int(last) if isinstance(at, list) else last] = deepcopy(value)

    return change


def both(*changes: Change) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        for each in changes:
            each(cluster, node)

    return change


def everywhere(one: Change) -> Change:
    """The same on all nodes."""

    def change(cluster: Cluster, node: str) -> None:
        for each in cluster.nodes:
            one(cluster, each)

    return change


def variable(name: str, value: str) -> Change:
    """In the node's environment, by its report and by its account."""

    def change(cluster: Cluster, node: str) -> None:
        cluster.reports[node]["environment"][name] = value
        if node in cluster.network:
            cluster.network[node][name] = value

    return change


def clock(seconds: float, within: float = 0.01) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        cluster.clocks = {each: ClockOffset(0.0, 0.01) for each in cluster.nodes}
        cluster.clocks[node] = ClockOffset(seconds, within)

    return change


def no_clocks(cluster: Cluster, node: str) -> None:
    cluster.clocks = None


NO_ROOT = put("uid", 1000)
RANKS = {"nproc_per_node": 8}

LIMITS = [
    Case(
        "limits.memlock",
        "infiniband",
        both(NO_ROOT, put("limits.memlock", 64 * 1024)),
        both(put("uid", 0), put("system.container", None), put("limits.memlock", 64 * 1024)),
        "may lock 65.5 kB",
    ),
    Case(
        "limits.memlock",
        "roce",
        both(NO_ROOT, put("limits.memlock", 512 * MIB)),
        both(NO_ROOT, put("limits.memlock", GIB)),
        "may lock 536.9 MB",
        "warning",
    ),
    Case(
        "limits.memlock",
        "infiniband",
        both(put("uid", 0), put("system.container", "docker"), put("limits.memlock", 8 * MIB)),
        both(NO_ROOT, put("limits.memlock", 8 * MIB), everywhere(variable("NCCL_IB_DISABLE", "1"))),
        "may lock 8.4 MB",
    ),
    Case(
        "limits.shm",
        "ethernet",
        put("shm.total", 64 * MIB),
        put("shm.total", 512 * MIB),
        "/dev/shm has",
        wanted=RANKS,
    ),
    Case(
        "limits.shm",
        "ethernet",
        put("shm.total", 128 * MIB),
        lambda cluster, node: (put("shm.total", 128 * MIB)(cluster, node), cluster.want(nproc_per_node=1)),
        "/dev/shm has",
        "warning",
        wanted=RANKS,
    ),
    Case("limits.shm-full", "cpu", put("shm.free", 4096), put("shm.free", MIB), "/dev/shm is full"),
    Case("limits.nofile", "ethernet", put("limits.nofile", 200), put("limits.nofile", 256), "may open 200 files"),
    Case("limits.nproc", "cpu", both(NO_ROOT, put("limits.nproc", 100)), both(put("uid", 0), put("limits.nproc", 100)),
         "may have 100 processes"),
]  # fmt: skip

CLOCK = [
    Case("clock.spread", "cpu", clock(-120.0), clock(1.9), "its clock is 2.0 min behind"),
    Case("clock.spread", "cpu", clock(10.0), clock(10.0, within=9.0), "its clock is 10.0 s ahead", "warning"),
    Case(
        "clock.spread",
        "infiniband",
        both(no_clocks, put("time", 1_795_900_300.0)),
        both(no_clocks, put("time", 1_795_900_040.0)),
        "its clock is 5.0 min ahead",
    ),
]


def silent(cluster: Cluster, node: str) -> None:
    cluster.reports[node] = None
    cluster.absent[node] = "ssh: connect to host: No route to host"
    cluster.pairs = None
    for table in (cluster.must_match, cluster.network, cluster.clocks or {}, cluster.earlier):
        table.pop(node, None)


def starts(number: int, usual: int) -> Change:
    return lambda cluster, node: cluster.num_processes.update({**dict.fromkeys(cluster.nodes, usual), node: number})


def refuses(*texts: str) -> Change:
    return lambda cluster, node: cluster.refusals.update({node: list(texts)})


REPORTS = [
    Case("reach.node", "cpu", silent, put("unanswered", {}), "No route to host"),
    Case("start.processes", "cpu", starts(2, 1), starts(1, 1), "the number of processes is 2, where", "error"),
    Case("start.processes", "ethernet", starts(4, 8), starts(8, 8), "the number of processes is 4, where", "error"),
    Case("start.refused", "cpu", refuses("output_dir: cannot be written\nchoose another"), refuses(), "output_dir"),
    Case(
        "report.unanswered",
        "cpu",
        put("unanswered", {"paths: data /data": "did not answer in 5 s"}),
        put("unanswered", {"nvidia": "nvidia-smi is not installed", "code": "ended with exit code 1"}),
        "paths: data /data did not answer in 5 s",
    ),
    Case(
        "report.unanswered",
        "ethernet",
        both(
            everywhere(put("unanswered", {})), put("unanswered", {"nvidia": "did not answer in 5 s (nvidia-smi -q -x)"})
        ),
        put("unanswered", {"nvidia": "nvidia-smi is not installed"}),
        "nvidia did not answer",
    ),
    Case(
        "report.unanswered",
        "cpu",
        put("unanswered", {"nvidia": "did not answer in 5 s"}),
        put("unanswered", {"nvlinks": "ended with exit code 3"}),
        "nvidia did not answer",
        "warning",
    ),
    Case("report.unreadable", "cpu", put("shm", 7), put("later_version", 7), "shm is a number", "note"),
    Case(
        "report.withheld",
        "cpu",
        put("withheld", {"gpu_system.xids": "root alone reads the kernel's log"}),
        put("withheld", {}),
        "root alone",
        "note",
    ),
]


def interface(cluster: Cluster, node: str) -> dict[str, Any]:
    """The one that the node's ranks use."""
    return cluster.reports[node]["interfaces"][1]


def of_interface(**changes: Any) -> Change:
    return lambda cluster, node: interface(cluster, node).update(changes)


def told_interface(cluster: Cluster, node: str) -> None:
    """Which it is is told everywhere, by its name."""
    name = interface(cluster, node)["name"]
    cluster.want(interface=f"={name}")
    for each in cluster.nodes:
        cluster.reports[each]["environment"].pop("NCCL_SOCKET_IFNAME", None)
        cluster.network.pop(each, None)


def another_interface(**details: Any) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        cluster.reports[node]["interfaces"].append(
            {
                "state": "up",
                "carrier": True,
                "addresses": [{"address": f"192.168.9.{node[-1:].encode()[0]}"}],
                **details,
            }
        )

    return change


def other(cluster: Cluster, node: str) -> str:
    return next(each for each in cluster.nodes if each != node)


def resolves(what: Callable[[Cluster, str], list[str]], of: Callable[[Cluster, str], str] = other) -> Change:
    """What the node makes of the name of another."""

    def change(cluster: Cluster, node: str) -> None:
        cluster.reports[node]["names"][of(cluster, node)] = what(cluster, node)

    return change


def address_of(cluster: Cluster, node: str) -> str:
    return interface(cluster, node)["addresses"][0]["address"]


def meet_at_name(cluster: Cluster, node: str) -> None:
    cluster.want(master_addr=other(cluster, node))


def unreached(stage: str, *, inward: bool = True, outward: bool = False) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        places = [
            Place(name, [RankAddress("10.9.9.9", "eth0", "gloo", 1500)], "32768 to 60999") for name in cluster.nodes
        ]
        at = cluster.nodes.index(node)
        to = Unreached(at, "10.9.9.9", 4711, stage, "timed out")
        others = [place for place in range(len(places)) if place != at]
        found = [(place, to) for place in others] if inward else []
        found += [(at, replace(to, node=place)) for place in others] if outward else []
        cluster.pairs = Pairs(places, found)

    return change


def nobody_unreached(cluster: Cluster, node: str) -> None:
    unreached("connect", inward=False)(cluster, node)


def meet_on_another_network(cluster: Cluster, node: str) -> None:
    cluster.want(interface=None, master_addr="head")
    for number, each in enumerate(cluster.nodes):
        cluster.reports[each]["environment"].pop("NCCL_SOCKET_IFNAME", None)
        cluster.network.pop(each, None)
        addresses = [{"address": f"172.30.0.{number + 1}", "prefix": 24}]
        another_interface(name="data0", kind="physical", mtu=4200, addresses=addresses)(cluster, each)
        cluster.reports[each]["names"]["head"] = ["172.30.0.1"]


def one_machine(cluster: Cluster, node: str) -> None:
    for each in cluster.nodes:
        cluster.reports[each]["system"]["boot_id"] = "one"
        cluster.reports[each]["host"] = "laptop"
        interface(cluster, each)["addresses"] = [{"address": "10.20.0.1", "prefix": 16}]
        cluster.reports[each]["names"] = {"laptop": ["127.0.1.1"], "127.0.0.1": ["127.0.0.1"]}
    cluster.want(master_addr="127.0.0.1")


def same_address(cluster: Cluster, node: str) -> None:
    interface(cluster, node)["addresses"] = interface(cluster, other(cluster, node))["addresses"]
    for each in cluster.nodes:
        cluster.reports[each]["names"] = None


REACH = [
    Case(
        "reach.name-loopback",
        "cpu",
        resolves(lambda cluster, node: ["127.0.1.1"]),
        resolves(lambda cluster, node: ["127.0.1.1"], of=lambda cluster, node: node),
        "means 127.0.1.1 there",
    ),
    Case(
        "reach.name-of-another",
        "cpu",
        resolves(lambda cluster, node: [address_of(cluster, node)]),
        resolves(lambda cluster, node: ["203.0.113.9"], of=lambda cluster, node: "elsewhere.example.org"),
        "which is its own address",
    ),
    Case(
        "reach.name-unknown",
        "ethernet",
        both(meet_at_name, resolves(lambda cluster, node: [])),
        resolves(lambda cluster, node: []),
        "it knows no address of",
    ),
    Case(
        "reach.name-addresses",
        "cpu",
        resolves(lambda cluster, node: [address_of(cluster, other(cluster, node)), "203.0.113.7"]),
        resolves(lambda cluster, node: [address_of(cluster, other(cluster, node)), "fd00::7"], of=lambda c, n: "x"),
        "several addresses",
        "warning",
    ),
    Case(
        "reach.name-differs",
        "cpu",
        resolves(lambda cluster, node: ["203.0.113.7"]),
        everywhere(lambda cluster, node: None),
        "elsewhere 10.20.0.1",
        "warning",
    ),
    Case(
        "reach.own-name",
        "cpu",
        both(
            everywhere(resolves(lambda c, n: [address_of(c, n)], of=lambda c, n: n)),
            resolves(lambda c, n: ["127.0.1.1"], of=lambda c, n: n),
        ),
        everywhere(resolves(lambda c, n: [address_of(c, n)], of=lambda c, n: n)),
        "its own name",
        "note",
    ),
    Case(
        "reach.interface",
        "ethernet",
        both(told_interface, of_interface(state="down", carrier=False)),
        both(told_interface, another_interface(name="eth7", kind="physical", carrier=False, state="down")),
        "selects no running interface",
    ),
    Case(
        "reach.interface-kind",
        "cpu",
        both(everywhere(lambda c, n: c.network.pop(n, None)), variable("GLOO_SOCKET_IFNAME", "lo")),
        both(told_interface, another_interface(name="docker0", kind="bridge")),
        "which reaches no other node",
    ),
    Case(
        "reach.interface-kind",
        "ethernet",
        both(
            told_interface,
            variable("NCCL_SOCKET_IFNAME", "=docker7"),
            another_interface(name="docker7", kind="bridge", speed_mbits=None, mtu=9000),
            lambda c, n: c.reports[n]["interfaces"][-1].update(mtu=interface(c, n)["mtu"]),
        ),
        both(told_interface, of_interface(kind="veth", driver=None)),
        "a network of this host alone",
        "warning",
    ),
    Case(
        "reach.interface-slow",
        "ethernet",
        both(
            told_interface,
            everywhere(of_interface(speed_mbits=1000)),
            another_interface(name="ens9", kind="physical", speed_mbits=25000),
        ),
        both(
            told_interface,
            everywhere(of_interface(speed_mbits=10000)),
            another_interface(name="ens9", kind="physical", speed_mbits=25000),
        ),
        "and not ens9",
        "warning",
    ),
    Case(
        "reach.speed",
        "cpu",
        both(told_interface, everywhere(of_interface(speed_mbits=10_000)), of_interface(speed_mbits=1000)),
        both(told_interface, everywhere(of_interface(speed_mbits=10_000)), of_interface(speed_mbits=25_000)),
        "has 1 Gbit/s, where others have 10 Gbit/s",
    ),
    Case(
        "reach.speed",
        "ethernet",
        both(told_interface, everywhere(of_interface(speed_mbits=100_000)), of_interface(speed_mbits=25_000)),
        both(told_interface, everywhere(of_interface(speed_mbits=100_000)), of_interface(speed_mbits=None)),
        "has 25 Gbit/s",
        "warning",
    ),
    Case(
        "reach.mtu",
        "cpu",
        both(told_interface, everywhere(of_interface(mtu=9000)), of_interface(mtu=1500)),
        both(told_interface, another_interface(name="eth9", kind="physical", mtu=576)),
        "is 1500, where",
        "warning",
    ),
    Case(
        "reach.mtu",
        "cpu",
        # Of two networks it is the one that counts on which the nodes meet.
        both(meet_on_another_network, lambda c, n: c.reports[n]["interfaces"][-1].update(mtu=1400)),
        both(meet_on_another_network, of_interface(mtu=1400)),
        "is 1400, where",
        "warning",
    ),
    Case(
        "reach.address-twice",
        "cpu",
        both(told_interface, same_address),
        both(told_interface, one_machine),
        "have the address",
        also=other,
    ),
    Case("reach.pairs", "cpu", unreached("connect"), nobody_unreached, "not reached by"),
    Case("reach.pairs", "cpu", unreached("greet", inward=False, outward=True), nobody_unreached, "does not reach"),
    Case("reach.pairs-large", "ethernet", unreached("message", outward=True), nobody_unreached, "not reached by"),
]


def states(name: str, value: str, usual: str | None = None) -> Change:
    """What the node says must match; on the others it is `usual`, or what it was."""

    def change(cluster: Cluster, node: str) -> None:
        told = cluster.must_match or {each: {"learning_rate": "0.0001"} for each in cluster.nodes}
        for each in cluster.nodes:
            if usual is not None:
                told[each][name] = usual
        told[node][name] = value
        cluster.must_match = told

    return change


def says_nothing(cluster: Cluster, node: str) -> None:
    cluster.must_match = {}


def package(name: str, version: str | None) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        cluster.reports[node]["packages"][name] = {"version": version}

    return change


def commit(value: str, changes: str | None = None) -> Change:
    return put("code", {"commit": value * 20, "dirty": changes})


def of_ports(**changes: Any) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        for port in cluster.reports[node]["infiniband"]:
            port.update(changes)

    return change


PARITY = [
    Case(
        "parity.config",
        "cpu",
        states("learning_rate", "0.1", "0.0001"),
        both(says_nothing, everywhere(put("shm.total", GIB))),
        "learning_rate is 0.1, where",
    ),
    Case("parity.data", "cpu", states("data fingerprint", "aa", "bb"), states("data fingerprint", "aa", "aa"), "data"),
    Case(
        "parity.tokenizer",
        "cpu",
        states("base_model: tokenizer.json", "7 bytes, sha256 0", "7 bytes, sha256 1"),
        says_nothing,
        "tokenizer.json",
    ),
    Case(
        "parity.model",
        "cpu",
        states("base_model: model.safetensors", "7 bytes, sha256 0", "7 bytes, sha256 1"),
        states("base_model: model.safetensors", "7 bytes, sha256 1", "7 bytes, sha256 1"),
        "model.safetensors",
    ),
    Case(
        "parity.code",
        "cpu",
        states("code of allranks", "sha256 1", "sha256 2"),
        # The sources are the same, whatever git says.
        both(states("code of allranks", "sha256 2", "sha256 2"), everywhere(commit("ab")), commit("cd")),
        "the code of allranks is sha256 1",
    ),
    Case(
        "parity.code",
        "ethernet",
        both(says_nothing, everywhere(commit("ab")), commit("ab", "9f")),
        both(says_nothing, everywhere(commit("ab")), put("code", {})),
        "with changes (9f)",
    ),
    Case(
        "parity.python",
        "cpu",
        both(says_nothing, put("python.version", "3.10.1")),
        both(says_nothing, put("python.version", None)),
        "Python is 3.10.1",
    ),
    Case(
        "parity.installed",
        "cpu",
        both(says_nothing, package("torch", None)),
        both(says_nothing, put("packages", None)),
        "torch not installed",
    ),
    Case(
        "parity.packages",
        "cpu",
        both(says_nothing, package("torch", "2.1.0")),
        both(says_nothing, everywhere(package("deepspeed", "0.19.8"))),
        "torch is 2.1.0, where",
    ),
    Case(
        "parity.packages",
        "cpu",
        both(says_nothing, package("ray", "2.60")),
        both(says_nothing, package("nvidia-nccl-cu12", "2.1")),
        "ray is 2.60, where",
        "warning",
    ),
    Case(
        "parity.nccl",
        "infiniband",
        both(says_nothing, package("nvidia-nccl-cu12", "2.20.5")),
        both(says_nothing, everywhere(package("nvidia-nccl-cu12", "2.20.5"))),
        "nvidia-nccl-cu12 is 2.20.5",
    ),
    Case(
        "parity.driver", "roce", put("gpu_system.driver", "525.1"), put("gpu_system.driver", None), "525.1", "warning"
    ),
    Case(
        "parity.firmware",
        "infiniband",
        of_ports(firmware="16.0.1"),
        of_ports(firmware="16.0.1", model="MT4115"),
        "firmware of MT4129 is 16.0.1",
        "warning",
    ),
    Case(
        "parity.system",
        "cpu",
        both(everywhere(put("system", {"kernel": "6.1", "os": "Debian"})), put("system.kernel", "5.15")),
        everywhere(put("system", {"kernel": "6.1", "os": "Debian"})),
        "the kernel is 5.15",
        "note",
    ),
]

CLOCK.append(
    Case(
        "clock.kept",
        "cpu",
        both(everywhere(put("clock", {"synchronized": True})), put("clock", {"synchronized": False})),
        everywhere(put("clock", {"synchronized": False})),
        "keeps its clock",
        "note",
    )
)

OUTPUT, MODEL, TMP = 0, 1, 3


def at_path(number: int, **changes: Any) -> Change:
    return lambda cluster, node: cluster.reports[node]["paths"][number].update(changes)


def wants(**wanted: Any) -> Change:
    return lambda cluster, node: cluster.want(**wanted)


OWN_DISKS = everywhere(at_path(OUTPUT, network=False, type="ext4", device="/dev/sda1"))
ONE_DISK = everywhere(at_path(OUTPUT, network=True, type="nfs4", device="filer:/runs", free=10**13))
DISKS = [
    Case("disks.readable", "cpu", at_path(MODEL, exists=False), at_path(MODEL, readable=None), "is not there"),
    Case("disks.readable", "cpu", at_path(2, readable=False), at_path(OUTPUT, exists=False), "cannot be read"),
    Case("disks.writable", "cpu", at_path(OUTPUT, writable=False), at_path(MODEL, writable=False), "cannot be written"),
    Case(
        "disks.output-space",
        "cpu",
        both(wants(checkpoint_bytes=None), at_path(OUTPUT, free=MIB)),
        both(wants(checkpoint_bytes=None), at_path(OUTPUT, free=None)),
        "has 1.0 MB free, and a run needs",
    ),
    Case(
        "disks.output-space",
        "cpu",
        # A fifth or a ninth of it fits, the whole does not: it counts where the nodes share the disk.
        both(ONE_DISK, wants(checkpoint_bytes=90 * 10**9, num_checkpoints=1), OWN_DISKS, at_path(OUTPUT, free=10**9)),
        both(OWN_DISKS, wants(checkpoint_bytes=90 * 10**9, num_checkpoints=1), at_path(OUTPUT, free=31 * 10**9)),
        "this node's part",
    ),
    Case(
        "disks.output-space",
        "cpu",
        both(OWN_DISKS, wants(checkpoint_bytes=9 * 10**9, num_checkpoints=4), at_path(OUTPUT, free=3_100_000_000)),
        both(OWN_DISKS, wants(checkpoint_bytes=9 * 10**9, num_checkpoints=1), at_path(OUTPUT, free=3_100_000_000)),
        "4 checkpoints (this node's part) need",
        "warning",
    ),
    Case(
        "disks.inodes",
        "cpu",
        at_path(OUTPUT, inodes=10**6, free_inodes=20),
        at_path(OUTPUT, inodes=0, free_inodes=0),
        "can take 20 more files",
    ),
    Case("disks.tmp", "cpu", at_path(TMP, free=4096), at_path(TMP, free=16 * MIB), "tmp /tmp has 4.1 kB free"),
    Case(
        "disks.output-shared",
        "cpu",
        both(ONE_DISK, wants(output_shared=True), at_path(OUTPUT, network=False, type="ext4")),
        both(ONE_DISK, wants(output_shared=True)),
        "all nodes must share it",
    ),
    Case(
        "disks.mounts",
        "cpu",
        both(ONE_DISK, at_path(OUTPUT, network=False, device="/dev/sda1")),
        both(ONE_DISK, at_path(OUTPUT, network=None, type="fuse.rclone")),
        "is the node's own, where",
        "warning",
    ),
    Case(
        "disks.volatile",
        "cpu",
        both(OWN_DISKS, at_path(OUTPUT, type="tmpfs")),
        both(OWN_DISKS, at_path(TMP, type="tmpfs")),
        "is in memory",
        "note",
    ),
    Case(
        "disks.memory",
        "cpu",
        both(wants(load_bytes=15 * GIB, expected=None), put("memory", {"total": 256 * GIB, "cgroup_limit": 8 * GIB})),
        both(
            wants(load_bytes=15 * GIB, expected=None),
            put("memory", {"total": 256 * GIB, "cgroup_limit": 16 * GIB, "cgroup_used": 15 * GIB}),
        ),
        "its cgroup allows 8.6 GB",
    ),
    Case(
        "disks.memory",
        "cpu",
        both(wants(load_bytes=15 * GIB, expected=None), put("memory", {"total": 64 * GIB, "available": 2 * GIB})),
        both(wants(load_bytes=None), put("memory", {"total": 64 * GIB, "available": 2 * GIB})),
        "2.1 GB are available",
        "warning",
    ),
]

ENVIRONMENT = [
    Case(
        "environment.unreadable", "ethernet", variable("NCCL_IB_TIMEOUT", "22s"), variable("NCCL_IB_TIMEOUT", "0x16"),
        "NCCL takes only a whole number here",
    ),
    Case(
        "environment.must-match",
        "ethernet",
        variable("NCCL_BUFFSIZE", "2097152"),
        variable("NCCL_BUFFSIZE", "4194304"),
        "NCCL_BUFFSIZE is 2097152, where",
    ),
    Case(
        "environment.doubts",
        "cpu",
        variable("NCCL_SOKET_IFNAME", "eth0"),
        variable("NCCL_DEBUG", "WARN"),
        "did you mean NCCL_SOCKET_IFNAME",
        "warning",
    ),
    Case(
        "environment.slow", "roce", put("environment.CUDA_LAUNCH_BLOCKING", "1"),
        put("environment.CUDA_LAUNCH_BLOCKING", "0"), "CUDA_LAUNCH_BLOCKING=1 is set", "warning",
    ),
    Case(
        "environment.differs", "cpu", put("environment.OMP_NUM_THREADS", "4"), put("environment.LOCAL_RANK", "4"),
        "OMP_NUM_THREADS is 4", "note",
    ),
    Case(
        "environment.leftovers",
        "cpu",
        put("leftovers", [{"pid": 77, "user": "eve", "command": "python train.py", "orphan": True}]),
        put("leftovers", [{"pid": 77, "user": "eve", "command": "python train.py", "orphan": False}]),
        "pid 77 of eve",
        "warning",
    ),
]  # fmt: skip


def gpus_of(size: int) -> Change:
    def change(cluster: Cluster, node: str) -> None:
        for each in cluster.nodes:
            for gpu in cluster.reports[each]["gpus"]:
                gpu.update(memory=size, used=0)

    return everywhere(change)


WHOLE_MODEL, ITS_PARTS = expected(1, 1), expected(8, 8, fsdp_version=2, gradient_checkpointing=True)
"""Some 130 GB of weights, gradients and state; the same over 64 ranks."""
LARGE_HOSTS = everywhere(put("memory", {"total": 1024 * GIB}))
PLAN = [
    Case(
        "plan.memory",
        "infiniband",
        both(gpus_of(80 * GIB), wants(expected=WHOLE_MODEL)),
        both(gpus_of(80 * GIB), wants(expected=ITS_PARTS)),
        "a rank will hold",
        all_nodes=True,
    ),
    Case(
        "plan.memory",
        "ethernet",
        # Without packing rows may be shorter than sequence_len: it is not certain.
        both(gpus_of(40 * GIB), wants(expected=Expected(ITS_PARTS.workload, 1))),
        both(gpus_of(40 * GIB), wants(expected=None)),
        "rows are taken to be as long as sequence_len",
        "warning",
        all_nodes=True,
    ),
    Case(
        "plan.memory",
        "cpu",
        both(LARGE_HOSTS, wants(expected=expected(1, 1, on_cpu=True)), put("memory", {"total": 64 * GIB})),
        both(LARGE_HOSTS, wants(expected=expected(1, 1, on_cpu=True)), put("memory", {"total": None})),
        "and has",
        "warning",
        {"nproc_per_node": 1},
    ),
]

CASES = [*DISKS, *ENVIRONMENT, *REACH, *PARITY, *REPORTS, *LIMITS, *CLOCK, *PLAN]
