"""How long a step takes: computing by part at rates that devices reach, and communication that it does not hide.

The parts are counted from shapes (`plan.work`), the rates come from data sheets and one set of fitted constants, or
from what was measured on the machine itself (`plan.calibration`). Seconds everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from allranks.plan.calibration import Calibration
from allranks.plan.counted import alike, num_parameters
from allranks.plan.hardware import Device, Link, find_link
from allranks.plan.memory import kept_by_layers
from allranks.plan.moved import logits, with_logits
from allranks.plan.overlap import exchange
from allranks.plan.rates import FITTED, Constants, Rates, rates_of
from allranks.plan.work import Work, backward, forward, optimizer_bytes, useful_flops
from allranks.plan.workload import ModelShape, StepTime, Workload
from allranks.plan.zero_gathers import collectives_of_pass

_HOST_BYTES_PER_SECOND = 200e9
"""Of a node's processors, all together, at Adam's step: a billion parameters in 0.13 s (ZeRO-Offload, arXiv 2101.06840,
table 4)."""
_PCIE_BYTES_PER_SECOND = 20e9
"""Between a GPU and pinned memory of its node, over PCIe 4."""

# In starts of an operation, forward and back: torch.utils.checkpoint with what it keeps of each tensor and of the state
# of random numbers, and PEFT's forward; measured on layers of next to nothing, against the same without.
_RECOMPUTED_LAYER, _ADAPTED_MATRIX = 185, 8

_TRIMMED_FROM, _FRESH_FROM = 256 * 2**20, 16 * 2**20
"""Bytes at the end of a CPU rank's heap that glibc gives back once they are free, and of a tensor that it asks the
system for (launch.node.starters.memory)."""


def step_time(
    workload: Workload,
    device: Device,
    link: Link | None = None,
    calibration: Calibration | None = None,
    *,
    constants: Constants = FITTED,
) -> StepTime:
    """Of one optimizer step; `link` joins the nodes, `device.link` the devices of one.

    With a `calibration` of this device its rates take the place of the data sheet's; what earlier runs on the same
    machines took corrects the whole.
    """
    half = workload.element.compute <= 2
    rates = rates_of(device, half=half, constants=constants)
    if calibration is not None:
        rates = calibration.rates(rates, half=half, num_ranks=workload.ranks_per_node, num_threads=workload.num_threads)
    within = find_link(device.link, device.file)
    if calibration is not None and calibration.within is not None:
        within = calibration.within
    ahead = _Pass.of(forward(workload), workload, rates)
    back = _Pass.of(backward(workload), workload, rates, is_backward=True)
    idle = (ahead.waiting, back.waiting)
    told = exchange(workload, within, link, forward=ahead.seconds, backward=back.seconds, idle=idle)
    micro_batches = workload.num_micro_batches
    found = StepTime(
        matmul=micro_batches * (ahead.matmul + back.matmul),
        attention=micro_batches * (ahead.attention + back.attention),
        memory_bound=micro_batches * (ahead.memory_bound + back.memory_bound + _further_seconds(workload, rates)),
        optimizer=_optimizer_seconds(workload, rates),
        communication=told.seconds,
        exposed=told.exposed,
        overhead=rates.step_seconds
        + micro_batches * (ahead.waiting + back.waiting + rates.micro_batch_seconds + _python_seconds(workload, rates)),
    )
    return found if calibration is None else calibration.corrected(found, workload)


def tokens_per_second(workload: Workload, time: StepTime) -> float:
    """Of all ranks, padding included."""
    of_rank = workload.micro_batch_size * workload.tokens * workload.num_micro_batches
    return of_rank * workload.num_ranks / time.total


def utilisation(workload: Workload, device: Device, time: StepTime) -> float:
    """Model FLOPs utilisation: useful operations of a rank against the peak of its data sheet."""
    peak = device.peak(half=workload.element.compute <= 2)
    return useful_flops(workload) * workload.num_micro_batches / (time.total * peak)


def _python_seconds(workload: Workload, rates: Rates) -> float:
    """Of a micro-batch, what recomputing and PEFT do in Python around their operations. A GPU works meanwhile."""
    if not rates.is_serial:
        return 0.0
    recomputed = workload.shape.num_layers if workload.recomputes else 0
    kernels = _RECOMPUTED_LAYER * recomputed + _ADAPTED_MATRIX * len(workload.adapted)
    return kernels * rates.kernel_seconds


@dataclass(frozen=True)
class _Pass:
    """Of one micro-batch, forward or backward. `waiting`: the device waits for the host to start its next kernel."""

    matmul: float
    attention: float
    memory_bound: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.matmul + self.attention + self.memory_bound + self.waiting

    @classmethod
    def of(cls, work: Work, workload: Workload, rates: Rates, *, is_backward: bool = False) -> _Pass:
        matmul = sum(rates.product_seconds(one, workload.element.compute) for one in work.products)
        attention, memory = rates.attention_seconds(work), rates.moved_seconds(work)
        starting = work.kernels * rates.kernel_seconds + _hook_seconds(workload, rates)
        starting += collectives_of_pass(workload, backward=is_backward) * rates.gather_seconds
        on_device = matmul + attention + memory
        return cls(matmul, attention, memory, starting if rates.is_serial else max(0.0, starting - on_device))


def _hook_seconds(workload: Workload, rates: Rates) -> float:
    """DeepSpeed's hooks at each module gather its parameters and let them go, in Python."""
    if workload.layout.kind != "zero" or workload.layout.stage < 3:
        return 0.0
    modules = _num_modules(workload.shape) + 2 * len(workload.adapted)
    return modules * rates.hook_seconds


@lru_cache(maxsize=8)
def _num_modules(shape: ModelShape) -> int:
    """Those with a weight; experts of a layer are one, whatever their number in files."""
    names = (name.partition(".experts.")[0] for name, _ in alike(shape) if name.endswith(".weight"))
    return len(set(names))


def _optimizer_seconds(workload: Workload, rates: Rates) -> float:
    """Each rank steps what it holds the state of."""
    layout = workload.layout
    holders = {"ddp": 1, "fsdp": layout.num_shards, "zero": workload.num_ranks}[layout.kind]
    moved = optimizer_bytes(workload, workload.num_trained / holders)
    if not workload.offloads_optimizer:
        return moved / (rates.optimizer or rates.bandwidth)
    travelling = workload.num_trained / holders * (workload.element.gradient + workload.element.compute)
    return moved / (_HOST_BYTES_PER_SECOND / workload.ranks_per_node) + travelling / _PCIE_BYTES_PER_SECOND


def _further_seconds(workload: Workload, rates: Rates) -> float:
    """Of a micro-batch, for memory that comes from elsewhere: the host's, or the system's."""
    fresh = 0.0
    if rates.fresh_seconds and (kept := kept_by_layers(workload)) > _TRIMMED_FROM:
        # Each time that so much has been freed it goes back, and what is left of it stays: half in the mean.
        fresh = (kept - _TRIMMED_FROM / 2) * rates.fresh_seconds
    fresh += (_fresh_gradients(workload) + _fresh_logits(workload)) * rates.fresh_seconds
    return fresh + _offloaded_seconds(workload)


def _fresh_gradients(workload: Workload) -> float:
    """Bytes of those that are so large that a CPU rank has them from the system in each step: the ends'. The chunked
    loss makes the output layer's, and what comes of it going back is a second one."""
    shape = workload.shape
    end = shape.vocabulary * shape.hidden * workload.element.trained
    is_trained = workload.method == "full" and workload.trains_embeddings
    ends = (1 if shape.is_tied else 2) + workload.chunks_logits
    return ends * end if is_trained and end >= _FRESH_FROM else 0.0


def _fresh_logits(workload: Workload) -> float:
    """Likewise of the loss's chunks."""
    labelled, chunk = with_logits(workload), logits(workload, 0).tensor_bytes
    whole_chunks = max(1.0, 4.0 * labelled * workload.shape.vocabulary // chunk) if chunk else 0.0
    return whole_chunks * chunk if chunk >= _FRESH_FROM else 0.0


def _offloaded_seconds(workload: Workload) -> float:
    """What leaves the device for each micro-batch and comes back, as if computing hid nothing of it."""
    moved = 0.0
    if workload.offloads_activations:
        width = workload.shape.num_layers * workload.shape.hidden * workload.element.compute
        moved += 2.0 * workload.micro_batch_size * workload.tokens * width
    if workload.offloads_parameters:
        moved += 2.0 * num_parameters(workload.shape) * workload.element.compute / max(1, workload.layout.num_shards)
    return moved / _PCIE_BYTES_PER_SECOND
