"""Every strategy, method and useful micro-batch size of a config on given nodes, the best first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from allranks.listing import gigabytes
from allranks.plan.batch import Batch
from allranks.plan.calibration import Calibration
from allranks.plan.config_lines import deepspeed_changes
from allranks.plan.error_bounds import MEMORY_ERROR
from allranks.plan.hardware import Device, Link
from allranks.plan.lengths import Lengths
from allranks.plan.memory import rank_memory
from allranks.plan.time import step_time, utilisation
from allranks.plan.workload import RankMemory, StepTime, Workload


@dataclass(frozen=True)
class Machines:
    """Equal nodes. `link` joins them; what joins the devices of one is the device's own."""

    num_nodes: int
    ranks_per_node: int
    device: Device
    link: Link
    calibration: Calibration | None = None

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True)
class Row:
    """One way to train. `memory` is at the longest micro-batch, `time` of a step of the usual ones."""

    workload: Workload
    memory: RankMemory
    time: StepTime
    batch: Batch
    device: Device
    is_own: bool
    tokens_of_step: float
    mfu: float | None
    """Useful operations of a step, as part of what the devices could do at best; None on CPUs."""

    @property
    def used(self) -> float:
        """Part of the device's memory."""
        return self.memory.total / self.device.memory_bytes

    @property
    def fits(self) -> bool:
        return self.used <= 1

    @property
    def is_certain(self) -> bool:
        """Whether it fits, or does not, beyond what the prediction may be wrong by."""
        return self.used * (1 + MEMORY_ERROR) <= 1 or self.used > 1 + MEMORY_ERROR

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_of_step / self.time.total

    @property
    def deepspeed_changes(self) -> dict[str, str]:
        """What the config's DeepSpeed settings have to say beside the workload's changes, where it keeps them."""
        return deepspeed_changes(self.workload, self.workload.changes)

    @property
    def limit(self) -> str:
        """What it ends at: memory where it does not fit, else the part of a step that takes longest."""
        if not self.fits:
            return f"memory: {out_of(self.memory.total, self.device.memory_bytes)}"
        parts = {
            "communication": self.time.exposed,
            "matrix products": self.time.matmul,
            "attention": self.time.attention,
            "memory bandwidth": self.time.memory_bound,
            "optimizer": self.time.optimizer,
            "launching kernels": self.time.overhead,
        }
        part = max(parts, key=lambda name: parts[name])
        return f"{part}: {100 * parts[part] / self.time.total:.0f} % of a step"


def out_of(size: float, whole: float) -> str:
    """Two sizes, "93 of 80 GB", with as many decimals as tell them apart."""
    decimals = next((number for number in range(3) if round(size / 1e9, number) != round(whole / 1e9, number)), 3)
    return f"{size / 1e9:.{decimals}f} of {gigabytes(whole, decimals)}"


def rows(workloads: Sequence[Workload], machines: Machines, wanted: int, lengths: Lengths) -> list[Row]:
    """One for each workload, of which the first is the config's own; `wanted` is the effective batch of all. The best
    come first."""
    own = workloads[0]
    found = [row(one, machines, _batch(one, machines, wanted), lengths, is_own=one is own) for one in workloads]
    return _ranked(found, own)


def _batch(one: Workload, machines: Machines, wanted: int) -> Batch:
    return Batch(wanted, one.micro_batch_size, one.num_micro_batches, machines.num_nodes, machines.ranks_per_node)


def row(workload: Workload, machines: Machines, of: Batch, lengths: Lengths, *, is_own: bool = False) -> Row:
    """What a workload takes on these machines."""
    longest, slowest = replace(workload, tokens=lengths.longest), lengths.slowest_of(workload)
    time = step_time(slowest, machines.device, machines.link, machines.calibration)
    memory = _memory(longest, slowest, machines)
    mfu = None if workload.on_cpu else utilisation(lengths.usual_of(workload), machines.device, time)
    return Row(workload, memory, time, of, machines.device, is_own, of.effective * lengths.mean, mfu)


def _memory(longest: Workload, slowest: Workload, machines: Machines) -> RankMemory:
    """With what earlier runs of the workload on this machine held against what was predicted of them."""
    memory = rank_memory(longest, None if longest.on_cpu else machines.device)
    return machines.calibration.corrected_memory(memory, slowest) if machines.calibration else memory


def best_of_each(found: Iterable[Row]) -> list[Row]:
    """The best of each strategy and method, and the config's own: what is worth showing first. In the same order."""
    shown: list[Row] = []
    seen: set[tuple[str, str]] = set()
    for one in found:
        key = (one.workload.name, one.workload.method)
        if key not in seen or one.is_own:
            shown.append(one)
        seen.add(key)
    return shown


_METHODS = ("full", "lora", "qlora")
_SAME_TIME = 1.02
"""What takes no longer than this many times the fastest is as fast: predictions are not that exact."""


def _ranked(found: Sequence[Row], own: Workload) -> list[Row]:
    """What fits before what does not, the method that is asked for before others, which train something else, then the
    fastest; of those that are as fast the config's own strategy, what needs no other library, the smallest. Of those
    that do not fit, the smallest."""
    fastest = {
        method: min((one.time.total for one in found if one.fits and one.workload.method == method), default=0.0)
        for method in _METHODS
    }

    def rank(one: Row) -> tuple[float, ...]:
        method, layout = one.workload.method, one.workload.layout
        first = (not one.fits, method != own.method, _METHODS.index(method))
        if not one.fits:
            return (*first, one.memory.total)
        if one.time.total > _SAME_TIME * fastest[method]:
            return (*first, one.time.total, one.memory.total)
        return (*first, 0.0, layout != own.layout, layout.kind == "zero", one.memory.total)

    return sorted(found, key=rank)
