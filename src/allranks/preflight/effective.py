"""What will hold for the ranks of a node: its settings of NCCL and gloo, the config's behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from allranks.cluster.nccl_variables import number
from allranks.cluster.node_report import InfinibandPort, NodeReport
from allranks.preflight.check import Subject, Wanted


def setting(subject: Subject, node: str, name: str) -> str | None:
    """A variable of NCCL's or gloo's as the ranks of this node will see it; the environment wins over the config."""
    report = subject.reports[node]
    sources: tuple[Mapping[str, str], ...] = (
        subject.network.get(node, {}),
        (report.environment if report else None) or {},
        _from_config(subject.wanted),
    )
    return next((value for source in sources if (value := source.get(name))), None)


def is_one_machine(subject: Subject, nodes: Iterable[str]) -> bool:
    """Whether these are nodes of one machine, as where somebody tries a run of several nodes on a laptop."""
    systems = {(report.host, report.system.boot_id) for node in nodes if (report := subject.reports[node]) is not None}
    return len(systems) == 1 and (None, None) not in systems


def why_no_infiniband(subject: Subject, node: str, report: NodeReport) -> str | None:
    """Why this node's ranks will not use InfiniBand or RoCE; None if they will, or nobody knows."""
    if not subject.wanted.uses_nccl:
        return "this run does not use NCCL"
    off = setting(subject, node, "NCCL_IB_DISABLE")
    if off is not None and number(off):
        return "InfiniBand is switched off (NCCL_IB_DISABLE)"
    if report.infiniband == () and subject.wanted.infiniband != "required":
        return "it has no InfiniBand or RoCE adapter"
    return None


def completed(wanted: Wanted, reports: Iterable[NodeReport | None]) -> Wanted:
    """What a command leaves open, as `allranks train` decides it: a run uses GPUs and NCCL where there are GPUs."""
    if wanted.device is not None:
        return wanted
    known = [report.gpus for report in reports if report is not None and report.gpus is not None]
    if not known:
        return wanted
    if any(known):
        return replace(wanted, device="cuda", backend="nccl")
    return replace(wanted, device="cpu", backend="gloo")


def selected(report: NodeReport) -> list[InfinibandPort]:
    """The ports that NCCL_IB_HCA leaves, whatever their state."""
    return [port for port in report.infiniband or () if port.selected is not False]


def active(report: NodeReport) -> list[InfinibandPort]:
    """Those of them that NCCL will use."""
    return [port for port in selected(report) if port.state == "ACTIVE"]


def port_name(port: InfinibandPort) -> str:
    """`mlx5_0:1`, as NCCL writes it."""
    return f"{port.device or '?'}:{port.port if port.port is not None else '?'}"


def _from_config(wanted: Wanted) -> dict[str, str]:
    rendered = {}
    if wanted.interface:
        rendered["NCCL_SOCKET_IFNAME"] = wanted.interface
    if wanted.infiniband != "auto":
        rendered["NCCL_IB_DISABLE"] = "1" if wanted.infiniband == "off" else "0"
    if wanted.hcas:
        rendered["NCCL_IB_HCA"] = "=" + ",".join(wanted.hcas)
    if wanted.gid_index is not None:
        rendered["NCCL_IB_GID_INDEX"] = str(wanted.gid_index)
    return rendered
