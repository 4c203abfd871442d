"""What ZeRO moves between nodes in a step: why stage 3 needs fast links."""

from dataclasses import dataclass

from allranks.listing import si_bytes


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
) -> ZeroTraffic:
    """Bytes between nodes of a step with ZeRO-2 and with ZeRO-3.

    A ring over all ranks enters every node once, and carries (n-1)/n of the message over each of its edges (Thakur et
    al. 2005). Stage 3 gathers all parameters twice a micro-batch, forward and backward, and scatters the gradients of
    what is trained once (Rajbhandari et al. 2020, section 7: three times the model's size); stage 2 scatters gradients
    once a micro-batch and gathers what was trained once a step. `hpz` (ZeRO++, Wang et al. 2023): ranks that keep a
    copy of the parameters among themselves for the backward pass; within a node nothing of that crosses.
    """
    if num_nodes < 2:
        return ZeroTraffic(0.0, 0.0)
    ring = (num_ranks - 1) / num_ranks
    gathers = 1 if 1 < hpz <= num_ranks // num_nodes else 2
    return ZeroTraffic(
        zero2=ring * gradient_bytes * (num_micro_batches + 1),
        zero3=ring * num_micro_batches * (gathers * parameter_bytes + gradient_bytes),
    )


WORTH_A_WARNING = 125e6
"""Bytes a step: a tenth of a second at 10 Gbit/s."""


def slow_link_warning(found: ZeroTraffic, *, num_nodes: int, local_ranks: int, hpz: int) -> str:
    """ZeRO-3's traffic in words, with the seconds that it takes over usual links, and what would be less."""
    links = ", ".join(f"{_seconds(found.zero3, gigabits)} at {gigabits} Gbit/s" for gigabits in (10, 100, 400))
    better = f"ZeRO-2 would move {si_bytes(found.zero2)}"
    if hpz <= 1 and local_ranks > 1:
        better += f"; zero_hpz_partition_size: {local_ranks} saves about a third"
    return (
        f"ZeRO-3 over {num_nodes} nodes: each node receives up to {si_bytes(found.zero3)} in every step, which takes "
        f"{links}, where computing does not hide it. {better}"
    )


def _seconds(num_bytes: float, gigabits: int) -> str:
    seconds = num_bytes * 8 / (gigabits * 1e9)
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
