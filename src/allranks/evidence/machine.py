"""What the machine itself tells: its GPUs, the kernel's log, and NCCL's service. Each is asked in a child."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from allranks.cluster.probe.children import Found, Reporter
from allranks.cluster.probe.kernel_log import kernel_records
from allranks.cluster.probe.node import Node, ToolFailed, ToolMissing
from allranks.evidence.nccl_ras import nccl_diagnostics, nccl_status
from allranks.evidence.rank_memory import environment

_FIELDS = (
    "index,uuid,utilization.gpu,memory.used,memory.total,temperature.gpu,power.draw,pstate,"
    "ecc.errors.uncorrected.volatile.total"
)
# Of a hang: faults of GPUs and links, disks and NFS servers that do not answer, tasks held up, and memory run out.
_TELLING = re.compile(
    r"NVRM|Xid|amdgpu|mlx5|infiniband|nfs: server|not responding|blocked for more than|hung task|I/O error"
    r"|Out of memory|oom-kill|soft lockup|Link is Down|NETDEV WATCHDOG",
    re.IGNORECASE,
)
_LINES = 20


def look_at_gpus(reporter: Reporter) -> Iterator[Found]:
    try:
        text = Node(doing=reporter.doing).run("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits")
    except ToolMissing:
        return
    except ToolFailed as failure:
        reporter.failed(str(failure))
        return
    names = _FIELDS.split(",")
    rows = [line.split(", ") for line in text.splitlines()]
    yield {"gpus": [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]}


def look_at_kernel(since_boot_seconds: float, reporter: Reporter) -> Iterator[Found]:
    """What it has said since then: what was said of earlier runs explains none of this one."""
    try:
        records = kernel_records(Node(doing=reporter.doing), since_boot_seconds)
        lines = [line for line in records if _TELLING.search(line)]
    except OSError as error:
        reporter.withheld("kernel", f"the kernel's log cannot be read here: {error.strerror}")
        return
    yield {"kernel": [line[:400] for line in lines[-_LINES:]]}


def look_at_nccl(pids: Sequence[int], reporter: Reporter) -> Iterator[Found]:
    """NCCL listens on this node only if a rank of it uses NCCL; where it does not, nothing is said."""
    reporter.doing("NCCL's RAS service")
    address = next((said for pid in pids if (said := environment(pid).get("NCCL_RAS_ADDR"))), None)
    told = nccl_status(address, seconds=2.0)
    if "why" not in told or address is not None:
        yield {"nccl": told}
    if found := nccl_diagnostics(told, address, seconds=2.0):
        yield {"nccl": {"diagnostics": found}}
