"""Machines that this one is not, as trees of files which a probe reads in place of /proc, /sys and its tools.

Their contents have the form of real machines' (kernel 5.15 and 6.8, driver 570, ROCm 6.4), written anew: `dgx`, `roce`,
`ethernet`, `amd`, and `broken`, a DGX with ten faults.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BOOTED = 1_790_000_000
GIB = 2**30


@dataclass
class RecordedNode:
    """Files by name, links by what they point to, tools by what they print (or as a script), the kernel's answers."""

    files: dict[str, str | bytes] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    tools: dict[str, str] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)

    def write(self, root: Path) -> str:
        """Returns the root, for `ProbeRequest`."""
        files = {**self.files, "/recorded.json": json.dumps(self.recorded)}
        for name, content in files.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode() + b"\n")
        for name, target in self.links.items():
            path = root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)
        for name, text in self.tools.items():
            path = root / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text if text.startswith("#!") else f"#!/bin/sh\ncat <<'END'\n{text}\nEND\n")
            path.chmod(0o755)
        return str(root)


def plain(
    host: str, *, cores: int, memory: int, numa: int = 2, model: str = "Intel(R) Xeon(R) Platinum 8480C"
) -> RecordedNode:
    """A machine without GPUs and network: what all have."""
    node = RecordedNode()
    node.files |= {
        "/proc/sys/kernel/hostname": host,
        "/proc/sys/kernel/osrelease": "5.15.0-1063-nvidia",
        "/proc/sys/kernel/random/boot_id": "6f0a0d0e-53c7-4a40-9f6b-2f2f9f2f9f00",
        "/etc/os-release": 'PRETTY_NAME="Ubuntu 22.04.4 LTS"\nID=ubuntu',
        "/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nana:x:1001:1001::/home/ana:/bin/bash",
        "/proc/cpuinfo": "\n\n".join(
            f"processor\t: {core}\nmodel name\t: {model}\ncpu MHz\t\t: 2000.000" for core in range(cores)
        ),
        "/proc/self/status": f"Name:\tpython3\nCpus_allowed_list:\t0-{cores - 1}",
        "/proc/self/cgroup": "0::/user.slice/user-1001.slice/session-7.scope",
        "/proc/self/limits": (
            "Limit                     Soft Limit           Hard Limit           Units     \n"
            "Max processes             8255622              8255622              processes \n"
            "Max open files            1048576              1048576              files     \n"
            "Max locked memory         unlimited            unlimited            bytes     "
        ),
        "/proc/meminfo": (
            f"MemTotal:       {memory // 1024} kB\nMemFree:  1000 kB\nMemAvailable:   {memory * 9 // 10 // 1024} kB"
        ),
        "/proc/stat": f"cpu  1 2 3 4\nbtime {BOOTED}",
        "/proc/self/mountinfo": (
            "24 1 259:2 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p2 rw\n"
            "30 24 0:26 / /dev/shm rw,nosuid,nodev shared:4 - tmpfs tmpfs rw,inode64\n"
            "77 24 0:51 / /scratch\\040fast rw,relatime shared:9 - xfs /dev/md1 rw\n"
            "91 24 0:60 / /home rw,relatime shared:12 - nfs4 10.0.9.1:/export/home rw,vers=4.2,hard,proto=tcp"
        ),
        "/home/ana/.profile": "",
        "/scratch fast/README": "",
        "/dev/kmsg": "6,1,0,-;Linux version 5.15.0\n4,900,12000000,-;nvidia: loading out-of-tree module taints kernel.",
        "/proc/net/route": "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
    }
    for number in range(numa):
        node.files[f"/sys/devices/system/node/node{number}/cpulist"] = "0"
    node.recorded = {
        "uid": 1001,
        "machine": "x86_64",
        "time": BOOTED + 86400,
        "clock_synchronized": True,
        "environment": {"PATH": "/usr/bin"},
        "addresses": {},
        "names": {host: ["127.0.1.1"]},
        "filesystems": {
            "/": {"total": 1700 * GIB, "free": 1200 * GIB, "inodes": 10**8, "free_inodes": 9 * 10**7},
            "/dev/shm": {"total": memory // 2, "free": memory // 2},
            "/home": {"total": 100_000 * GIB, "free": 9 * GIB, "inodes": 10**9, "free_inodes": 12},
            "/scratch fast": {"total": 27_000 * GIB, "free": 20_000 * GIB},
        },
    }
    interface(node, "lo", [("127.0.0.1", 8), ("::1", 128)], kind="loopback", mtu=65536)
    return node


def interface(
    node: RecordedNode,
    name: str,
    addresses: Sequence[tuple[str, int]] = (),
    *,
    kind: str = "physical",
    speed: int | None = None,
    mtu: int = 1500,
    driver: str = "mlx5_core",
    is_up: bool = True,
    default: bool = False,
) -> None:
    """Add a network interface; the kernel numbers them in this order."""
    folder = f"/sys/class/net/{name}"
    index = 1 + sum(file.endswith("/ifindex") for file in node.files)
    types = {"loopback": 772, "infiniband": 32}
    node.files |= {
        f"{folder}/ifindex": str(index),
        f"{folder}/iflink": str(index + 1 if kind == "veth" else index),
        f"{folder}/type": str(types.get(kind, 1)),
        f"{folder}/flags": "0x1003" if is_up else "0x1002",
        f"{folder}/operstate": "unknown" if kind == "loopback" else "up" if is_up else "down",
        f"{folder}/mtu": str(mtu),
        f"{folder}/uevent": (f"DEVTYPE={kind}\n" if kind in ("bond", "bridge", "vlan") else "") + f"INTERFACE={name}",
    }
    if is_up:
        node.files[f"{folder}/carrier"] = "1"
    if speed is not None:
        node.files[f"{folder}/speed"] = str(speed)
    if kind in ("physical", "infiniband"):
        node.links[f"{folder}/device/driver"] = f"../../../../bus/pci/drivers/{driver}"
    node.recorded["addresses"][name] = [{"address": address, "prefix": prefix} for address, prefix in addresses]
    if default:
        node.files["/proc/net/route"] += f"\n{name}\t00000000\t0100000A\t0003\t0\t0\t100\t00000000\t0\t0\t0"


def adapter(
    node: RecordedNode,
    device: str,
    *,
    link: str = "InfiniBand",
    rate: str = "400 Gb/sec (4X NDR)",
    state: str = "4: ACTIVE",
    netdev: str = "",
    address: str = "",
    firmware: str = "28.39.3004",
    types: Mapping[int, str] | None = None,
) -> None:
    """Add an adapter with one port. `address` is its IPv4 address in hexadecimal, for RoCE's GIDs."""
    top = f"/sys/class/infiniband/{device}"
    number = int("".join(filter(str.isdigit, device.partition("_")[2])) or 0)
    folder = f"{top}/ports/1"
    local = f"0000:0000:0000:0000:0000:{{}}:{address[:4]}:{address[4:]}"
    if link == "InfiniBand":
        gids = {0: (f"fe80:0000:0000:0000:a088:c203:00f6:{number:04x}", "IB/RoCE v1")}
    else:
        gids = {
            **dict.fromkeys((0, 1), (f"fe80:0000:0000:0000:a288:c2ff:fef6:{number:04x}", "")),
            **{index: (local.format("ffff"), "") for index in (2, 3)},
        }
        kinds = types or {0: "IB/RoCE v1", 1: "RoCE v2", 2: "IB/RoCE v1", 3: "RoCE v2"}
        gids = {index: (gid, kinds[index]) for index, (gid, _) in gids.items()}
    node.files |= {
        f"{top}/fw_ver": firmware,
        f"{top}/board_id": "MT_0000000838",
        f"{top}/hca_type": "MT4129",
        f"{folder}/state": state,
        f"{folder}/phys_state": "5: LinkUp" if state == "4: ACTIVE" else "3: Disabled",
        f"{folder}/rate": rate,
        f"{folder}/link_layer": link,
        f"{folder}/counters/symbol_error": "0",
        f"{folder}/counters/link_downed": "3",
        f"{folder}/counters/port_rcv_errors": "0",
        f"{folder}/counters/port_rcv_data": "182736455",
        f"{folder}/hw_counters/out_of_sequence": "0",
        f"{folder}/hw_counters/packet_seq_err": "0",
    }
    for index in range(6):
        gid, kind = gids.get(index, (":".join(["0000"] * 8), ""))
        node.files[f"{folder}/gids/{index}"] = gid
        if kind:
            node.files[f"{folder}/gid_attrs/types/{index}"] = kind
            if netdev:
                node.files[f"{folder}/gid_attrs/ndevs/{index}"] = netdev


def pci_device(node: RecordedNode, place: str, vendor: int, kind: int, **files: str) -> None:
    folder = f"/sys/bus/pci/devices/{place}"
    node.files |= {f"{folder}/vendor": f"0x{vendor:04x}", f"{folder}/class": f"0x{kind:06x}"}
    node.files |= {f"{folder}/{name}": content for name, content in files.items()}


def bridge(node: RecordedNode, place: str, *, redirects: bool, as_root: bool = True) -> None:
    """A PCI bridge with ACS among its extended capabilities; without root only the first 64 bytes are to be read."""
    registers = bytearray(4096 if as_root else 64)
    if as_root:
        struct.pack_into("<I", registers, 0x100, 0x148 << 20 | 1 << 16 | 0x0001)  # advanced error reporting, first
        struct.pack_into("<IHH", registers, 0x148, 1 << 16 | 0x000D, 0x5F, 0x1D if redirects else 0x0)
    pci_device(node, place, 0x8086, 0x060400)
    node.files[f"/sys/bus/pci/devices/{place}/config"] = bytes(registers)


@dataclass
class NvidiaGpu:
    """One <gpu> of `nvidia-smi -q -x`."""

    pci: str
    uuid: str
    model: str = "NVIDIA H100 80GB HBM3"
    memory: int = 81559
    used: int = 1
    width: int = 16
    uncorrected: int = 0
    pending: str = "No"
    reasons: Sequence[str] = ("gpu_idle",)
    processes: Sequence[tuple[int, str, int]] = ()
    temperature: int = 34

    def xml(self) -> str:
        names = ("gpu_idle", "applications_clocks_setting", "sw_power_cap", "hw_slowdown", "hw_thermal_slowdown")
        names += ("hw_power_brake_slowdown", "sync_boost", "sw_thermal_slowdown", "display_clocks_setting")
        states = {name: "Active" if name in self.reasons else "Not Active" for name in names}
        heads = {name: f"clocks_event_reason_{name}" for name in names}
        reasons = "".join(f"<{heads[name]}>{state}</{heads[name]}>" for name, state in states.items())
        processes = "".join(
            f"<process_info><gpu_instance_id>N/A</gpu_instance_id><pid>{pid}</pid><type>C</type>"
            f"<process_name>{name}</process_name><used_memory>{used} MiB</used_memory></process_info>"
            for pid, name, used in self.processes
        )
        return f"""<gpu id="{self.pci}">
<product_name>{self.model}</product_name><product_brand>NVIDIA</product_brand><persistence_mode>Enabled</persistence_mode>
<mig_mode><current_mig>Disabled</current_mig><pending_mig>Disabled</pending_mig></mig_mode>
<uuid>{self.uuid}</uuid><minor_number>0</minor_number>
<pci><pci_bus_id>{self.pci}</pci_bus_id><pci_gpu_link_info>
<pcie_gen><max_link_gen>5</max_link_gen><current_link_gen>5</current_link_gen></pcie_gen>
<link_widths><max_link_width>16x</max_link_width><current_link_width>{self.width}x</current_link_width></link_widths>
</pci_gpu_link_info></pci>
<clocks_event_reasons>{reasons}</clocks_event_reasons>
<fb_memory_usage><total>{self.memory} MiB</total><reserved>500 MiB</reserved><used>{self.used} MiB</used>
</fb_memory_usage>
<ecc_mode><current_ecc>Enabled</current_ecc></ecc_mode>
<ecc_errors><volatile><sram_correctable>4</sram_correctable><sram_uncorrectable_parity>0</sram_uncorrectable_parity>
<sram_uncorrectable_secded>0</sram_uncorrectable_secded><dram_correctable>0</dram_correctable>
<dram_uncorrectable>{self.uncorrected}</dram_uncorrectable></volatile>
<aggregate><dram_uncorrectable>77</dram_uncorrectable></aggregate></ecc_errors>
<retired_pages><pending_blacklist>N/A</pending_blacklist><pending_retirement>N/A</pending_retirement></retired_pages>
<remapped_rows><remapped_row_corr>0</remapped_row_corr><remapped_row_unc>0</remapped_row_unc>
<remapped_row_pending>{self.pending}</remapped_row_pending><remapped_row_failure>No</remapped_row_failure></remapped_rows>
<temperature><gpu_temp>{self.temperature} C</gpu_temp><gpu_temp_max_threshold>N/A</gpu_temp_max_threshold></temperature>
<fabric><state>Completed</state><status>Success</status></fabric>
<processes>{processes}</processes>
</gpu>"""


def nvidia_gpus(node: RecordedNode, gpus: Sequence[NvidiaGpu], *, links: int = 18) -> None:
    """Give a node these GPUs: on the bus, in the driver's files, and in its tool."""
    node.files |= {
        "/proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release",
        "/sys/module/nvidia_peermem/refcnt": "0",
        "/dev/nvidiactl": "",
    }
    for index, gpu in enumerate(gpus):
        place = gpu.pci.lower().replace("00000000:", "0000:")
        pci_device(node, place, 0x10DE, 0x030200)
        node.files[f"/dev/nvidia{index}"] = ""
        node.files[f"/proc/driver/nvidia/gpus/{place}/information"] = (
            f"Model: \t\t {gpu.model}\nIRQ:   \t\t 1095\nGPU UUID: \t {gpu.uuid}\nDevice Minor: \t {index}"
        )
    log = "\n".join(
        [
            '<?xml version="1.0" ?>',
            '<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">',
            "<nvidia_smi_log><driver_version>570.86.15</driver_version><cuda_version>12.8</cuda_version>",
            *(gpu.xml() for gpu in gpus),
            "</nvidia_smi_log>",
        ]
    )
    status = "\n".join(
        f"GPU {index}: {gpu.model} (UUID: {gpu.uuid})\n"
        + "\n".join(f"\t Link {link}: 26.562 GB/s" for link in range(links))
        for index, gpu in enumerate(gpus)
    )
    node.tools["nvidia-smi"] = (
        f"#!/bin/sh\nif [ \"$1\" = nvlink ]; then cat <<'END'\n{status}\nEND\nelse cat <<'END'\n{log}\nEND\nfi\n"
    )


H100_PLACES = ("1B", "43", "52", "61", "9D", "C3", "D1", "DF")
H100S = [
    NvidiaGpu(f"00000000:{place}:00.0", f"GPU-{index:08x}-aaaa-bbbb-cccc-dddddddddddd")
    for index, place in enumerate(H100_PLACES)
]
COMPUTE = (0, 3, 4, 5, 6, 9, 10, 11)
"""The numbers of a DGX H100's adapters that are for computing; the others are for storage."""


def dgx(host: str = "dgx01", gpus: Sequence[NvidiaGpu] = H100S) -> RecordedNode:
    """Eight H100 and eight NDR adapters, two for storage, managed over Ethernet."""
    node = plain(host, cores=224, memory=2048 * GIB)
    interface(
        node, "eno3", [("10.0.0.11", 24), ("fe80::3eec:efff:fe00:11", 64)], speed=10000, driver="i40e", default=True
    )
    for number in COMPUTE:
        adapter(node, f"mlx5_{number}")
        interface(node, f"ib{number}", kind="infiniband", mtu=4092, driver="mlx5_core[ib_ipoib]")
    for number in (1, 7):
        adapter(
            node,
            f"mlx5_{number}",
            link="Ethernet",
            rate="100 Gb/sec (2X HDR)",
            netdev=f"enp{number}s0",
            address="0a00090b",
        )
        interface(node, f"enp{number}s0", [(f"10.0.9.{number}", 24)], speed=100000, mtu=9000)
    interface(node, "docker0", [("172.17.0.1", 16)], kind="bridge", is_up=False)
    nvidia_gpus(node, gpus)
    for place in ("07", "08", "09", "0a"):
        pci_device(node, f"0000:{place}:00.0", 0x10DE, 0x068000)
    bridge(node, "0000:16:01.0", redirects=False)
    pci_device(node, "0000:03:00.0", 0x1A03, 0x030000)  # the board's own VGA
    node.tools["systemctl"] = "active"
    node.recorded["environment"] = {
        "PATH": "/usr/bin",
        "NCCL_IB_HCA": "=" + ",".join(f"mlx5_{number}" for number in COMPUTE),
        "HF_TOKEN": "hf_" + "x" * 34,
        "https_proxy": "http://ana:s3cr/t@proxy.example:3128",
        "HTTP_PROXY": "ana:s3cret@proxy.example:3128",
    }
    return node


def roce(host: str = "roce01") -> RecordedNode:
    """Four L40S behind two RoCE ports that a bond joins, with a VLAN on it; a container of Slurm's with limits."""
    node = plain(host, cores=64, memory=512 * GIB, numa=2, model="AMD EPYC 9354 32-Core Processor")
    interface(node, "ens1f0np0", speed=200000, mtu=9000)
    interface(node, "ens1f1np1", speed=200000, mtu=9000)
    interface(node, "bond0", [("10.1.0.21", 24)], kind="bond", speed=400000, mtu=9000, default=True)
    interface(node, "bond0.70", [("10.7.0.21", 24)], kind="vlan", speed=400000, mtu=9000)
    interface(node, "vethab12", kind="veth", speed=10000)
    adapter(node, "mlx5_bond_0", link="Ethernet", rate="400 Gb/sec (4X NDR)", netdev="bond0", address="0a010015")
    gpus = [
        NvidiaGpu(f"00000000:{place}:00.0", f"GPU-{index:08x}-1111-2222-3333-444444444444", "NVIDIA L40S", 46068)
        for index, place in enumerate(("21", "41", "A1", "C1"))
    ]
    nvidia_gpus(node, gpus, links=0)
    bridge(node, "0000:20:01.1", redirects=True)
    node.files |= {
        "/proc/self/cgroup": "0::/system.slice/slurmstepd.scope/job_17",
        "/proc/self/status": "Name:\tpython3\nCpus_allowed_list:\t0-15,32-47",
        "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_17/memory.max": str(256 * GIB),
        "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_17/memory.current": str(2 * GIB),
        "/sys/fs/cgroup/system.slice/slurmstepd.scope/memory.max": "max",
        "/sys/fs/cgroup/system.slice/slurmstepd.scope/job_17/cpu.max": "3200000 100000",
        "/etc/nccl.conf": "NCCL_IB_HCA=^mlx5_bond_1",
    }
    return node


def ethernet(host: str = "worker-a") -> RecordedNode:
    """No GPU and no adapter: a virtual machine that runs ranks on its CPU in a container."""
    node = plain(host, cores=8, memory=32 * GIB, numa=1, model="Intel Xeon Processor (Skylake)")
    interface(node, "eth0", [("192.168.5.4", 24)], driver="virtio_net", default=True)
    del node.files["/dev/kmsg"]
    pci_device(node, "0000:00:02.0", 0x1AF4, 0x020000)
    node.files |= {
        "/.dockerenv": "",
        "/proc/self/cgroup": "12:cpu,cpuacct:/docker/0a1b\n9:memory:/docker/0a1b",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes": str(8 * GIB),
        "/sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB),
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "250000",
        "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000",
    }
    node.files["/proc/self/limits"] = node.files["/proc/self/limits"].replace(
        "unlimited            unlimited", "65536                65536    "
    )  # type: ignore[union-attr, arg-type]
    node.recorded["filesystems"]["/dev/shm"] = {"total": 64 * 2**20, "free": 64 * 2**20}
    return node


def amd(host: str = "mi300x-1") -> RecordedNode:
    """Eight MI300X with Thor 2 adapters."""
    node = plain(host, cores=192, memory=2304 * GIB, model="AMD EPYC 9654 96-Core Processor")
    interface(node, "enp49s0f0np0", [("10.3.0.31", 24)], speed=100000, mtu=9000, driver="bnxt_en", default=True)
    cards: dict[str, Any] = {}
    for index, place in enumerate(("05", "26", "46", "65", "85", "a6", "c6", "e5")):
        pci, unique, gpu_id = f"0000:{place}:00.0", f"{0x2A1B0000 + index:016x}", str(40000 + index)
        pci_device(
            node,
            pci,
            0x1002,
            0x120000,
            unique_id=unique,
            mem_info_vram_total=str(192 * GIB),
            mem_info_vram_used=str(283 * 2**20 if index != 2 else 64 * GIB),
            current_link_width="16",
            max_link_width="16",
            current_link_speed="32.0 GT/s PCIe",
            max_link_speed="32.0 GT/s PCIe",
        )
        node.files[f"/sys/bus/pci/devices/{pci}/ras/umc_err_count"] = "ue: 0\nce: 4"
        node.files[f"/sys/class/kfd/kfd/topology/nodes/{index + 2}/gpu_id"] = gpu_id
        node.files[f"/sys/class/kfd/kfd/topology/nodes/{index + 2}/properties"] = (
            f"cpu_cores_count 0\nsimd_count 1216\nlocation_id {int(place, 16) << 8}\ndomain 0"
        )
        node.files[f"/dev/dri/renderD{128 + index}"] = ""
        cards[f"card{index}"] = {
            "Unique ID": f"0x{unique}",
            "PCI Bus": pci.upper(),
            "Card Series": "AMD Instinct MI300X",
            "Card Model": "0x74a1",
            "VRAM Total Memory (B)": str(192 * GIB),
            "VRAM Total Used Memory (B)": str(283 * 2**20 if index != 2 else 64 * GIB),
            "Temperature (Sensor junction) (C)": "41.0",
        }
        adapter(node, f"bnxt_re{index}", link="Ethernet", netdev=f"rdma{index}", address=f"0a04{index:02x}1f")
    node.files |= {
        "/sys/module/amdgpu/version": "6.12.12",
        "/sys/class/kfd/kfd/proc/7001/vram_40002": str(60 * GIB),
        "/proc/7001/status": "Name:\tpython3\nUid:\t1001\t1001\t1001\t1001",
        "/proc/7001/cmdline": "/opt/conda/bin/python3\0-u\0/home/ana/serve.py\0--api-key\0sk-secretsecretsecretsecret",
        "/proc/7001/stat": "7001 (python3) S 1 7001 7001 0 -1 4194304 1 0 0 0 5 5 0 0 20 0 1 0 360000 1 1",
    }
    node.tools["rocm-smi"] = "WARNING: AMD GPU device(s) is/are in a low-power state.\n\n" + json.dumps(
        {**cards, "system": {"Driver version": "6.12.12"}}
    )
    bridge(node, "0000:00:01.1", redirects=False, as_root=False)
    return node


FAULTS: dict[str, Callable[[RecordedNode], None]] = {}


def _fault(name: str) -> Callable[[Callable[[RecordedNode], None]], None]:
    def keep(change: Callable[[RecordedNode], None]) -> None:
        FAULTS[name] = change

    return keep


@_fault("port down")
def _(node: RecordedNode) -> None:
    adapter(node, "mlx5_3", state="1: DOWN", rate="10 Gb/sec (4X SDR)")


@_fault("rate lower")
def _(node: RecordedNode) -> None:
    adapter(node, "mlx5_4", rate="200 Gb/sec (4X HDR)")


@_fault("RoCE beside InfiniBand")
def _(node: RecordedNode) -> None:
    adapter(node, "mlx5_9", link="Ethernet", rate="400 Gb/sec (4X NDR)", netdev="enp9s0", address="0a00090c")


@_fault("wrong type of GID")
def _(node: RecordedNode) -> None:
    wrong = dict.fromkeys(range(4), "IB/RoCE v1")
    adapter(node, "mlx5_1", link="Ethernet", netdev="enp1s0", address="0a00090b", types=wrong)


@_fault("no nvidia_peermem")
def _(node: RecordedNode) -> None:
    del node.files["/sys/module/nvidia_peermem/refcnt"]


BROKEN_GPUS = [
    NvidiaGpu(H100S[0].pci, H100S[0].uuid, uncorrected=2, pending="Yes"),  # an ECC error
    NvidiaGpu(H100S[1].pci, H100S[1].uuid, reasons=("hw_slowdown", "hw_thermal_slowdown"), temperature=91),  # throttled
    NvidiaGpu(H100S[2].pci, H100S[2].uuid, used=70211, processes=[(4242, "/usr/bin/python3", 70200)]),  # in use
    NvidiaGpu(H100S[3].pci, H100S[3].uuid, width=8),  # half of its PCIe lanes
    *H100S[4:7],  # and the eighth has fallen off the bus, as its Xid says
]


@_fault("Xid")
def _(node: RecordedNode) -> None:
    node.files["/dev/kmsg"] = (
        "4,900,12000000,-;nvidia: loading out-of-tree module taints kernel.\n"
        "3,901,7200000000,-;NVRM: Xid (PCI:0000:df:00): 79, pid=4242, name=python3, GPU has fallen off the bus."
    )


def broken(host: str = "dgx13") -> RecordedNode:
    """A DGX with all of FAULTS, and those of BROKEN_GPUS."""
    node = dgx(host, H100S)
    nvidia_gpus(node, BROKEN_GPUS)
    for change in FAULTS.values():
        change(node)
    node.files |= {
        "/proc/1/comm": "systemd",
        "/proc/4242/status": "Name:\tpython3\nUid:\t1002\t1002\t1002\t1002",
        "/proc/4242/cmdline": "/usr/bin/python3\0-m\0allranks.train\0c.yaml",
        "/proc/4242/environ": "RANK=2\0LOCAL_RANK=2\0WORLD_SIZE=8",
        "/proc/4242/stat": "4242 (python3) S 1 4242 4242 0 -1 4194304 1 0 0 0 5 5 0 0 20 0 1 0 720000 1 1",
    }
    return node
