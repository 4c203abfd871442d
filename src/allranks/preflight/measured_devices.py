"""What each device did when it was measured, and what all ranks came to together."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

from allranks.cluster.measure.children import DeviceMeasured
from allranks.listing import si_bytes
from allranks.preflight.check import Answer, Check, Subject, found, skipped, unknown
from allranks.preflight.folding import fold
from allranks.preflight.looking import NO_REPORT
from allranks.preflight.usual import not_measured, rest_is_well, scaled

# Of the median of all devices. Cores are shared, by other programs and by threads; GPUs are not.
_GPU_SHARE, _CPU_SHARE = 0.8, 0.3


def _devices(subject: Subject, name: str, get: Callable[[DeviceMeasured], float | None], unit: str) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    of = subject.measured.devices
    if not any(of.values()):
        return [skipped(subject.nodes, "it was not measured")]
    rates = [rate for devices in of.values() for one in devices if (rate := get(one)) is not None]
    usual = median(rates) if len(rates) > 1 else None
    answers: list[Answer] = []
    for node in subject.nodes:
        devices = of.get(node) or ()
        if not devices:
            answers.append(unknown(node, NO_REPORT))
        for one in devices:
            rate = get(one)
            share = _GPU_SHARE if one.device.startswith("cuda") else _CPU_SHARE
            if rate is None:
                answers.append(unknown(node, f"{one.device}: {one.failed or 'it said nothing of it'}"))
            elif usual is None:
                answers.append(skipped(node, "there is no other device to compare with"))
            elif rate < share * usual:
                what = f"{one.device} (rank {one.rank}): {name} at {scaled(rate, unit)}"
                answers.append(found(node, f"{what}, {rate / usual:.0%} of what is usual here"))
    return rest_is_well(subject, answers)


def _matmul(subject: Subject) -> list[Answer]:
    return _devices(subject, "a matmul runs", lambda one: one.matmul_flops, "FLOP/s")


def _copy(subject: Subject) -> list[Answer]:
    return _devices(subject, "memory is copied", lambda one: one.copy_bytes_per_second, "B/s")


def _all_reduce(subject: Subject) -> list[Answer]:
    if (nothing := not_measured(subject)) is not None:
        return nothing
    measured = subject.measured
    assert measured is not None
    if not measured.world_size:
        return [skipped(subject.nodes, "no all-reduce was made: there is one rank only, or very many")]
    answers: list[Answer] = []
    lame = {node for node in subject.nodes for one in measured.devices.get(node) or () if one.matmul_flops is None}
    for node in subject.nodes:
        devices = measured.devices.get(node) or ()
        if not devices:
            answers.append(unknown(node, NO_REPORT))
        for one in devices:
            who = f"rank {one.rank} ({one.device})"
            if wrong := next((each for each in one.all_reduces if not each.right), None):
                size = si_bytes(wrong.num_bytes, 0, "B")
                answers.append(found(node, f"{who}: an all-reduce of {size} gave a wrong sum"))
            elif one.done:
                continue
            elif lame and node not in lame:  # who never came keeps all others waiting, and alone is to blame
                answers.append(unknown(node, f"it waited for {fold(lame)}"))
            elif one.joined:
                answers.append(found(node, f"{who} joined, and did not come through the all-reduces: {one.failed}"))
            else:
                answers.append(found(node, f"{who} did not join the process group: {one.failed}"))
    return rest_is_well(subject, answers)


def _nccl(subject: Subject) -> list[Answer]:
    """What NCCL's own diagnostics, on when the all-reduces are made, complain of."""
    if (nothing := not_measured(subject)) is not None:
        return nothing
    assert subject.measured is not None
    answers: list[Answer] = []
    for node in subject.nodes:
        devices = subject.measured.devices.get(node) or ()
        lines = [line for one in devices for line in one.diagnostics]
        bad = list(dict.fromkeys(line for line in lines if not line.startswith(("[OK]", "[INFO]"))))
        if not lines:
            answers.append(skipped(node, "NCCL said nothing of it: it is not used, or older than 2.31"))
        elif bad:
            answers.append(found(node, f"NCCL's diagnostics: {bad[0]}", evidence=bad[1:]))
    return rest_is_well(subject, answers)


CHECKS = (
    Check(
        "measured.matmul",
        "How fast each GPU (without GPUs: each node) multiplies matrices",
        "All ranks wait in every step for the slowest device.",
        "Look at its clocks, temperature and power (nvidia-smi -q -d PERFORMANCE), and at what else runs there",
        "warning",
        "Against the median of all devices: a GPU below 80 %, a CPU, whose cores others may use, below 30 %.",
        _matmul,
        quick=False,
        recorded=True,
    ),
    Check(
        "measured.copy",
        "How fast each GPU (without GPUs: each node) copies its memory",
        "Most of a step that is no matmul is bound by memory.",
        "Look at the device's memory clocks and ECC counters, and at what else runs there",
        "warning",
        "As of measured.matmul.",
        _copy,
        quick=False,
        recorded=True,
    ),
    Check(
        "measured.all-reduce",
        "Whether all ranks come together in a process group (gloo, or NCCL on GPUs) and get the right sums",
        "It is what training does: what ports, adapters and drivers promise is proved by it alone.",
        "Read the words of the rank that is named; NCCL_DEBUG=INFO shows more of them",
        "error",
        "Each rank is a process of its own with 60 s to meet the others, after PyTorch has started. Where a rank's "
        "device failed before, only its node is named.",
        _all_reduce,
        quick=False,
    ),
    Check(
        "measured.nccl",
        "What NCCL's own diagnostics say when ranks meet (NCCL 2.31 and newer)",
        "It looks at drivers, ECC, XIDs, NVLink, its variables and peer-to-peer access from inside.",
        "Look the line up in NCCL's troubleshooting guide",
        "warning",
        "Lines marked OK and INFO are well. Known from its documentation only: no such NCCL has been run.",
        _nccl,
        quick=False,
        recorded=True,
    ),
)
