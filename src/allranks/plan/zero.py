"""What ZeRO moves between nodes in a step: why stage 3 needs fast links."""

from dataclasses import dataclass, replace

from allranks.listing import si_bytes
from allranks.plan.communication import Backend
from allranks.plan.step_traffic import Layout, StepSizes, node_sends_bytes


@dataclass(frozen=True)
class ZeroTraffic:
    """Bytes that each node receives from other nodes in one step, by stage."""

    zero2: float
    zero3: float


def traffic(
    *,
    parameter_bytes: float,
    gradient_bytes: float,
    num_ranks: int,
    num_nodes: int,
    num_micro_batches: int,
    hpz: int = 1,
    backend: Backend = "nccl",
) -> ZeroTraffic:
    """Bytes between nodes of a step with ZeRO-2 and with ZeRO-3, by `plan.step_traffic`: as many come as are sent.

    `hpz` (ZeRO++, Wang et al. 2023): ranks that keep a copy of the parameters among themselves; within a node nothing
    of that crosses.
    """
    sizes = StepSizes(1, 1, parameter_bytes, gradient_bytes, num_micro_batches)
    nodes = [rank * num_nodes // num_ranks for rank in range(num_ranks)]
    zero2 = replace(sizes, parameter_bytes=gradient_bytes)  # it gathers what was trained only
    return ZeroTraffic(
        zero2=node_sends_bytes(Layout("zero", stage=2), zero2, nodes, backend),
        zero3=node_sends_bytes(Layout("zero", stage=3, hpz=hpz), sizes, nodes, backend),
    )


WORTH_A_WARNING = 125e6
"""Bytes a step: a tenth of a second at 10 Gbit/s."""


def slow_link_warning(found: ZeroTraffic, *, num_nodes: int, local_ranks: int, with_hpz: float | None) -> str:
    """ZeRO-3's traffic in words, with the seconds that it takes over usual links, and what would be less.

    `with_hpz`: what it would be with copies within the nodes, where there are none yet.
    """
    links = ", ".join(f"{_seconds(found.zero3, gigabits)} at {gigabits} Gbit/s" for gigabits in (10, 100, 400))
    others = {"ZeRO-2": found.zero2, f"zero_hpz_partition_size: {local_ranks}": with_hpz}
    less = [
        f"{name} would move {si_bytes(sent)}" for name, sent in others.items() if sent and sent < 0.95 * found.zero3
    ]
    return (
        f"ZeRO-3 over {num_nodes} nodes: each node receives up to {si_bytes(found.zero3)} in every step, which takes "
        f"{links}, where computing does not hide it{'. ' + '; '.join(less) if less else ''}"
    )


def _seconds(num_bytes: float, gigabits: int) -> str:
    seconds = num_bytes * 8 / (gigabits * 1e9)
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
