"""Healthy clusters drawn at random from plausible values, as their nodes would report; faults are put in by hand."""

from __future__ import annotations

import functools
import itertools
import random
from dataclasses import dataclass, field, replace
from typing import Any

from allranks.cluster.measure.children import AllReduce, DeviceMeasured
from allranks.cluster.measure.schedule import ALL_PAIRS_OF_OTHERS, first_rounds, second_rounds
from allranks.cluster.measure.values import Link, Measurements, TransportMeasured
from allranks.cluster.node_report import NodeReport
from allranks.cluster.rank_addresses import RankAddress
from allranks.doctor.pairs import Place
from allranks.plan.fit import Expected
from allranks.preflight.check import ClockOffset, Pairs, Subject, Wanted
from tests.planned import LORA, SMALL, expected

GIB, MIB, TB = 2**30, 2**20, 10**12
KINDS = ("infiniband", "roce", "ethernet", "cpu", "amd")
T = 1_795_900_000.0


@dataclass
class Cluster:
    """What is told of every node, as plain JSON that a test may change; None in `reports` for a node that is silent."""

    kind: str
    reports: dict[str, dict[str, Any] | None]
    wanted: Wanted
    must_match: dict[str, dict[str, str]]
    network: dict[str, dict[str, str]]
    clocks: dict[str, ClockOffset] | None
    pairs: Pairs | None
    earlier: dict[str, dict[str, Any]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    refusals: dict[str, list[str]] = field(default_factory=dict)
    num_processes: dict[str, int] = field(default_factory=dict)
    starting: str = ""
    measured: Measurements | None = None

    @property
    def nodes(self) -> list[str]:
        return list(self.reports)

    def want(self, **wanted: Any) -> None:
        """Ask for this; nodes that have GPUs then have enough of them."""
        self.wanted = replace(self.wanted, **wanted)
        for report in self.reports.values():
            if report and report["gpus"]:
                self._have_gpus(report, self.wanted.nproc_per_node or 1)

    def _have_gpus(self, report: dict[str, Any], number: int) -> None:
        gpus = report["gpus"]
        while len(gpus) < number:
            index = len(gpus)
            own = {"index": index, "uuid": f"{gpus[0]['uuid']}-{index}", "pci": f"0000:{16 * index + 1:02x}:00.0"}
            gpus.append({**gpus[0], **own})
        listed = ",".join(map(str, range(len(gpus))))
        report["environment"]["CUDA_VISIBLE_DEVICES"] = listed
        report["gpu_system"]["visible"] = report["gpu_system"]["visible"] and listed

    def have_measured(self) -> Measurements:
        """What was measured; where nothing was, it now is."""
        if self.measured is None:
            self.measured = measured_of(random.Random(len(self.nodes)), self)
        return self.measured

    def subject(self) -> Subject:
        return Subject(
            reports={
                node: None if report is None else NodeReport.from_message(report)
                for node, report in self.reports.items()
            },
            starting=self.starting or self.nodes[0],
            wanted=self.wanted,
            absent=self.absent,
            refusals=self.refusals,
            num_processes=self.num_processes,
            must_match=self.must_match,
            network=self.network,
            pairs=self.pairs,
            clocks=self.clocks,
            earlier={node: NodeReport.from_message(report) for node, report in self.earlier.items()},
            measured=self.measured,
        )


def healthy(rng, num_nodes=None, kind=None, gpus_each=None) -> Cluster:
    """A cluster on which nothing is to be found, nor warned of. `rng` is a `random.Random`."""
    kind = kind or rng.choice(KINDS)
    num_nodes = num_nodes or (rng.choice((2, 2, 3, 3, 4, 5, 8)) if rng.random() < 0.98 else rng.choice((16, 32, 64)))
    style = rng.choice(
        ("node{}", "gpu-{:03d}", "ip-10-0-0-{}", "node {0} (host{0})", "rack1-n{}.example.org", "10.1.2.{}")
    )
    names = [style.format(number) for number in range(num_nodes)]
    draw = _Draw(rng, kind, names, gpus_each)
    reports = {name: draw.report(number) for number, name in enumerate(names)}
    must_match = {
        name: {
            "python": draw.python,
            "package torch": draw.torch,
            "code of allranks": "sha256 0123456789abcdef",
            "learning_rate": "0.0001",
            "base_model": '"/models/qwen"',
            "base_model: config.json": "812 bytes, sha256 0011223344556677",
            "base_model: tokenizer.json": "7000000 bytes, sha256 8899aabbccddeeff",
        }
        for name in names
    }
    clocks = {name: ClockOffset(rng.gauss(0, 0.05), within=abs(rng.gauss(0, 0.02))) for name in names}
    pairs = Pairs([Place(name, draw.addresses(number), "32768 to 60999") for number, name in enumerate(names)])
    cluster = Cluster(
        kind,
        reports,
        draw.wanted(),
        must_match if rng.random() < 0.8 else {},
        {name: dict(draw.variables) for name in names} if rng.random() < 0.5 else {},
        clocks if rng.random() < 0.8 else None,
        pairs if rng.random() < 0.8 else None,
        starting=rng.choice(names),
    )
    if (own := random.Random(repr((names, kind)))).random() < 0.5:  # leaves all other draws as they are
        cluster.measured = measured_of(own, cluster)
    if rng.random() < 0.3 and kind in ("infiniband", "roce"):
        cluster.earlier = {name: draw.report(number) for number, name in enumerate(names)}
    return cluster


def measured_of(rng, cluster: Cluster) -> Measurements:
    """Measurements of healthy nodes: links differ by some tenths, GPUs by some percent, cores by more."""
    names, on_gpus = cluster.nodes, cluster.wanted.device == "cuda"
    rounds = [*first_rounds(len(names)), *second_rounds(len(names), [])]
    pairs = {pair for one in rounds for pair in one}
    # As the interfaces are: 1 Gbit/s is nearly filled, TCP through one kernel does not fill the fastest.
    speeds = [nic["speed_mbits"] for nic in cluster.reports[names[0]]["interfaces"] if nic.get("speed_mbits")]
    usual = min([*speeds, 20_000]) * 1e6 / 8 * 0.9
    links = [
        Link(names[a], names[b], rng.choice(("", "eth0")), rng.uniform(2e-5, 2e-4), rng.uniform(0.85, 1.05) * usual)
        for pair in sorted(pairs)
        for a, b in (pair, pair[::-1])
    ]
    ranks = itertools.count()
    spread = (0.95, 1.03) if on_gpus else (0.7, 1.15)
    devices = {
        name: [
            DeviceMeasured(
                next(ranks),
                f"cuda:{local}" if on_gpus else "cpu",
                rng.uniform(*spread) * 1e11,
                rng.uniform(*spread) * 1e10,
                True,
                [AllReduce(size, size / 1e9 + 1e-4, True) for size in (8192, 2**20, 2**25)],
                True,
            )
            for local in range(cluster.wanted.nproc_per_node or 1 if on_gpus else 1)
        ]
        for name in names
    }
    measured = Measurements(links if len(names) > 1 else (), devices, sum(map(len, devices.values())))
    if len(names) == 1:
        return measured
    return replace(measured, others=other_transports(rng, cluster, usual), without_rdma=_without_rdma(cluster))


def other_transports(rng, cluster: Cluster, usual: float) -> list[TransportMeasured]:
    """Each rail of adapters at what sound ones come to, and sometimes a network for storage or for management."""
    names = cluster.nodes
    up_to = ALL_PAIRS_OF_OTHERS
    pairs = sorted(
        pair for one in (*first_rounds(len(names), up_to), *second_rounds(len(names), [], up_to)) for pair in one
    )
    directions = [(names[a], names[b]) for pair in pairs for a, b in (pair, pair[::-1])]
    rails = {
        f"{port['device']}:{port['port']}": port["rate_gbits"] * 1e9 / 8
        for port in cluster.reports[names[0]]["infiniband"]
        if port["state"] == "ACTIVE"
    }
    found = [
        TransportMeasured("rdma", rail, [Link(a, b, rail, None, rng.uniform(0.9, 0.98) * rate) for a, b in directions])
        for rail, rate in rails.items()
    ]
    for network in ("10.99.0.0/24", "192.168.7.0/24")[: rng.choice((0, 0, 1, 2))]:
        rate = rng.choice((0.1, 0.5, 1.0, 1.5)) * usual
        links = [
            Link(a, b, rng.choice(("ens9", "eth1")), rng.uniform(2e-5, 2e-4), rng.uniform(0.8, 1.1) * rate)
            for a, b in directions
        ]
        found.append(TransportMeasured("tcp", network, links))
    return found


def _without_rdma(cluster: Cluster) -> dict[str, str]:
    if cluster.kind in ("infiniband", "roce"):
        return {}
    return dict.fromkeys(cluster.nodes, "it has no active InfiniBand or RoCE port")


@functools.cache
def _model(is_gpu):
    if is_gpu:
        return expected(**LORA, sequence_len=2048, gradient_checkpointing=True).workload
    return expected(on_cpu=True, model=SMALL, sequence_len=256, **LORA).workload


class _Draw:
    """What is the same on all nodes of a cluster is drawn once, the rest for each node."""

    def __init__(self, rng, kind, names, gpus_each=None):
        self.rng, self.kind, self.names = rng, kind, names
        self.gpus_each = 0 if kind == "cpu" else gpus_each or rng.choice((1, 2, 4, 8))
        self.gpu = (
            ("AMD Instinct MI300X", 192 * GIB)
            if kind == "amd"
            else rng.choice(
                (("NVIDIA H100 80GB HBM3", 80 * GIB), ("NVIDIA A100-SXM4-40GB", 40 * GIB), ("NVIDIA L40S", 45 * GIB))
            )
        )
        self.driver = rng.choice(("550.54.15", "560.35.03", "535.183.01"))
        self.python = rng.choice(("3.11.2", "3.12.4"))
        self.torch = rng.choice(("2.13.0", "2.13.0+cu128"))
        self.container = rng.choice((None, "docker", "kubernetes", "podman"))
        self.uid = rng.choice((0, 1000, 4242))
        self.kernels = rng.sample(("6.8.0-45-generic", "6.8.0-47-generic", "5.15.0-1063-aws", "6.1.0-18-amd64"), 2)
        self.main = rng.choice(("eth0", "bond0", "eno1", "ens5"))
        self.mtu = rng.choice((1500, 9000, 9001))
        self.speed = rng.choice((1000, 10_000, 25_000, 100_000))
        self.firmware = rng.choice(("28.39.1002", "20.35.2000"))
        self.gid_index = rng.choice((None, 3)) if kind == "roce" else None
        self.shared = rng.random() < 0.5
        self.tmp_type = rng.choice(("ext4", "tmpfs", "overlay"))
        self.peermem = rng.random() < 0.7
        self.idle_second_port = rng.random() < 0.3
        self.narrow = rng.random() < 0.1  # slots of half the width everywhere
        self.no_gpu_tool = rng.random() < 0.1
        self.is_virtual = self.container is not None and rng.random() < 0.5  # a network of its own, as in Kubernetes
        self.variables = rng.choice(({}, {"NCCL_DEBUG": "INFO"}, {"NCCL_SOCKET_IFNAME": f"={self.main}"}))

    def wanted(self):
        is_gpu = self.kind != "cpu"
        return Wanted(
            nproc_per_node=self.gpus_each or self.rng.choice((1, 2, 8)),
            device="cuda" if is_gpu else "cpu",
            backend="nccl" if is_gpu else "gloo",
            master_addr=self.rng.choice((self.address(0), None)),
            interface=self.rng.choice((None, self.main)),
            gid_index=self.gid_index,
            checkpoint_bytes=self.rng.choice((None, 10**8, 90 * 10**9)),
            num_checkpoints=self.rng.choice((1, 4)),
            checkpoint_files=self.rng.choice((None, 40)),
            load_bytes=self.rng.choice((None, 15 * GIB)),
            expected=self.expected(is_gpu),
        )

    def expected(self, is_gpu):
        """A run whose memory is enough: a model of eight billion parameters with LoRA on GPUs, a small one on CPUs."""
        if (own := random.Random(repr((self.names, self.kind, "plan")))).random() < 0.6:
            return None
        model = _model(is_gpu)
        ranks = self.gpus_each or 1
        tokens = own.choice((128, 1024, model.tokens))
        return Expected(
            replace(model, ranks_per_node=ranks, num_ranks=ranks * len(self.names), tokens=tokens),
            own.choice((1, tokens)),
        )

    def address(self, number):
        return f"10.20.{number // 200}.{number % 200 + 10}"

    def addresses(self, number):
        return [RankAddress(self.address(number), self.main, "NCCL" if self.kind != "cpu" else "gloo", self.mtu)]

    def report(self, number):
        rng, is_gpu = self.rng, self.kind != "cpu"
        is_root_box = self.uid == 0 and self.container is None
        free = rng.randrange(2 * TB, 8 * TB)
        memory = rng.choice((256, 1024, 2048)) * GIB
        cgroup = rng.choice((None, memory // 2))
        report = {
            "version": 1,
            "host": f"h{number}",
            "seconds": rng.uniform(0.1, 1.2),
            "time": T + rng.uniform(0, 3),
            "uid": self.uid,
            "unanswered": {},
            "system": {
                "kernel": rng.choice(self.kernels),
                "os": rng.choice(("Ubuntu 22.04.4 LTS", "Debian GNU/Linux 12")),
                "machine": "x86_64",
                "container": self.container,
                "boot_id": f"{rng.getrandbits(64):x}",
            },
            "interfaces": self.interfaces(number),
            "names": self.resolved(number),
            "infiniband": self.infiniband(number),
            "gpus": self.gpus(number) if is_gpu else rng.choice((None, [])),
            "gpu_system": self.gpu_system() if is_gpu else {},
            "cpu": {"model": rng.choice(("Intel Xeon 8480", "AMD EPYC 9654")), "num_cores": rng.choice((64, 112, 192))},
            "memory": {
                "total": memory,
                "available": int(memory * rng.uniform(0.5, 0.95)),
                "cgroup_limit": cgroup,
                # Mostly cache that the kernel gives back.
                "cgroup_used": cgroup and int(cgroup * rng.uniform(0.1, 0.98)),
            },
            "shm": {"total": memory // 2, "free": int(memory * 0.49)}
            if is_gpu
            else {"total": 64 * MIB, "free": 64 * MIB},
            "limits": {
                "memlock": 8 * MIB if is_root_box or not is_gpu else rng.choice((-1, 64 * GIB, memory)),
                "nofile": rng.choice((1024, 65536, 1048576, -1)),
                "nproc": rng.choice((-1, 4096, 515_000, None)),
            },
            "paths": [
                {
                    "path": "/runs/out",
                    "purpose": "output_dir",
                    "exists": rng.random() < 0.5,
                    "mount": "/runs",
                    "type": "nfs4" if self.shared else "ext4",
                    "network": self.shared,
                    "device": "filer:/export/runs" if self.shared else rng.choice(("/dev/nvme0n1p2", "/dev/sda1")),
                    "total": 10 * TB,
                    "free": free,
                    "inodes": rng.choice((0, None, 10**8)),
                    "free_inodes": 9 * 10**7,
                    "readable": True,
                    "writable": True,
                },
                {"path": "/models/qwen", "purpose": "model", "exists": True, "readable": True, "type": "ext4"},
                {"path": "/data/train.jsonl", "purpose": "data", "exists": True, "readable": True, "type": "ext4"},
                {
                    "path": "/tmp",
                    "purpose": "tmp",
                    "exists": True,
                    "readable": True,
                    "writable": True,
                    "type": self.tmp_type,
                    "total": 50 * GIB,
                    "free": 30 * GIB,
                },
            ],
            "python": {"executable": "/opt/venv/bin/python", "version": self.python},
            "packages": {
                "allranks": {"version": "0.1.0", "path": rng.choice(("/opt/venv/lib", "/home/u/venv/lib"))},
                "torch": {"version": self.torch, "path": "/opt/venv/lib"},
                "transformers": {"version": "5.1.0", "path": "/opt/venv/lib"},
                "deepspeed": {"version": None, "path": None},
                "nvidia-nccl-cu12": {"version": "2.27.3" if self.kind in KINDS[:3] else None, "path": None},
            },
            "code": {"path": "/opt/venv/lib", "commit": rng.choice((None, "ab" * 20)), "dirty": None}
            if number % 2
            else {"path": "/opt/venv/lib"},
            "environment": {
                **self.variables,
                "PATH": "/usr/bin",
                "CUDA_VISIBLE_DEVICES": ",".join(map(str, range(self.gpus_each))),
                "https_proxy": "http://proxy.example.org:3128",
            },
            "leftovers": rng.choice((None, [])),
        }
        if not is_gpu:
            del report["environment"]["CUDA_VISIBLE_DEVICES"]
        if is_gpu and self.kind != "amd" and self.no_gpu_tool:
            report["unanswered"] = {"nvidia": "nvidia-smi is not installed"}
            known = ("vendor", "model", "uuid", "pci")  # as the driver tells in /proc
            report["gpus"] = [{name: gpu[name] for name in known} for gpu in report["gpus"]]
        for place in rng.sample(("cpu", "leftovers", "code"), rng.randrange(3)):
            del report[place]  # an older probe, or a source that has nothing
        return report

    def interfaces(self, number):
        rng = self.rng
        found = [
            {
                "name": "lo",
                "state": "unknown",
                "carrier": True,
                "mtu": 65536,
                "kind": "loopback",
                "addresses": [{"address": "127.0.0.1", "prefix": 8}, {"address": "::1", "prefix": 128}],
            },
            {
                "name": self.main,
                "state": "up",
                "carrier": True,
                "speed_mbits": rng.choice((self.speed, None)) if self.main == "ens5" else self.speed,
                "mtu": self.mtu,
                "driver": rng.choice(("mlx5_core", "ena", "ixgbe")),
                "kind": "bond" if self.main == "bond0" else "veth" if self.is_virtual else "physical",
                "default_route": True,
                "addresses": [
                    {"address": self.address(number), "prefix": 16},
                    {"address": f"fe80::{number + 1:x}", "prefix": 64},
                ],
            },
        ]
        if rng.random() < 0.5:
            found.append(
                {
                    "name": "docker0",
                    "state": "down",
                    "carrier": False,
                    "mtu": 1500,
                    "kind": "bridge",
                    "addresses": [{"address": "172.17.0.1", "prefix": 16}],
                }
            )
        if rng.random() < 0.3:
            found.append(
                {
                    "name": f"veth{rng.getrandbits(24):x}",
                    "state": "up",
                    "carrier": True,
                    "kind": "veth",
                    "addresses": [],
                }
            )
        if rng.random() < 0.3:
            found.append({"name": "eno8", "state": "down", "carrier": False, "kind": "physical", "addresses": []})
        if self.kind == "infiniband":
            found.append(
                {
                    "name": "ibs0",
                    "state": "down",
                    "carrier": False,
                    "kind": "infiniband",
                    "mtu": 2044,
                    "addresses": [],
                }
            )
        return found

    def resolved(self, number):
        asked = self.names if len(self.names) <= 64 else self.names[:64]
        found = {name: [self.address(other)] for other, name in enumerate(asked)}
        if self.names[number] in found and self.rng.random() < 0.3:
            found[self.names[number]] = ["127.0.1.1"]  # as Debian's installer writes it
        return found

    def infiniband(self, number):
        if self.kind not in ("infiniband", "roce"):
            return []
        is_roce = self.kind == "roce"
        ports = []
        for each in range(max(1, self.gpus_each // 2)):
            v4 = f"0000:0000:0000:0000:0000:ffff:0a{each + 40:02x}:{number:04x}"
            guid = f"a088:c203:{number:04x}:{each:04x}"
            gids = (
                [
                    {"index": 0, "gid": f"fe80:0000:0000:0000:{guid}", "type": "IB/RoCE v1", "netdev": f"rdma{each}"},
                    {"index": 1, "gid": f"fe80:0000:0000:0000:{guid}", "type": "RoCE v2", "netdev": f"rdma{each}"},
                    {"index": 2, "gid": v4, "type": "IB/RoCE v1", "netdev": f"rdma{each}"},
                    {"index": 3, "gid": v4, "type": "RoCE v2", "netdev": f"rdma{each}"},
                ]
                if is_roce
                else [{"index": 0, "gid": f"fe80:0000:0000:0000:{guid}", "type": "IB/RoCE v1", "netdev": None}]
            )
            port = {
                "device": f"mlx5_{each}",
                "port": 1,
                "state": "ACTIVE",
                "physical_state": "LinkUp",
                "rate_gbits": 400.0,
                "link_layer": "Ethernet" if is_roce else "InfiniBand",
                "firmware": self.firmware,
                "model": "MT4129",
                "netdev": f"rdma{each}" if is_roce else None,
                "subnet": "fe80:0000:0000:0000",
                "gids": gids,
                # Of its whole life: some lost symbols are no fault.
                "counters": {"symbol_error": each, "link_downed": 2, "port_rcv_errors": 0},
                "selected": True,
            }
            ports.append(port)
            if self.idle_second_port:
                ports.append({**port, "port": 2, "state": "DOWN", "physical_state": "Disabled", "rate_gbits": 40.0})
        return ports

    def gpus(self, number):
        rng = self.rng
        model, memory = self.gpu
        with_pids = rng.random() < 0.5
        return [
            {
                "index": index,
                "vendor": "amd" if self.kind == "amd" else "nvidia",
                "model": model,
                "uuid": f"GPU-{number:04d}-{index}",
                "pci": f"0000:{16 * index + 1:02x}:00.0",
                "memory": memory,
                "used": rng.choice((0, 4 * MIB, 600 * MIB)),
                "processes": rng.choice(
                    ([], [{"pid": 1400, "user": "root", "command": "dcgm-exporter", "used": 20 * MIB}])
                )
                if with_pids
                else None,
                "driver": self.driver,
                "ecc_uncorrected": rng.choice((0, None)),
                "remapped_pending": False,
                "remapped_failed": False,
                "retired_pages_pending": rng.choice((False, None)),
                "throttled": [],
                "mig": rng.choice(("disabled", None)),
                "pcie_width": 8 if self.narrow else 16,
                "pcie_width_max": 16,
                "pcie_generation": rng.choice((1, 4)),  # an idle GPU lowers it
                "pcie_generation_max": 4,
                "nvlinks_active": 12 if "SXM" in model else 0,
                "nvlinks": 12 if "SXM" in model else 0,
                "temperature": rng.uniform(25, 60),
            }
            for index in range(self.gpus_each)
        ]

    def gpu_system(self):
        present = 8 if self.container and self.rng.random() < 0.5 else self.gpus_each
        return {
            "driver": self.driver,
            "cuda": "12.4",
            "visible": ",".join(map(str, range(self.gpus_each))) if self.rng.random() < 0.5 else None,
            "num_present": self.rng.choice((present, None)),
            "nvidia_peermem": self.peermem if self.kind != "amd" else None,
            "fabric_manager": None,
            "acs": self.rng.choice((False, None)),
            "xids": self.rng.choice((None, [], ["NVRM: Xid (PCI:0000:01:00): 31, pid=77, name=python, MMU Fault"])),
        }
