"""What was measured on this machine: rates that take the place of data sheets, and what earlier runs took."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from allranks.cluster.cores import cores_of_rank, usable_cores
from allranks.plan.hardware import Link
from allranks.plan.rates import FITTED, Rates
from allranks.plan.work import attended
from allranks.plan.workload import RankMemory, StepTime, Workload

# What a CPU does once for a micro-batch and once for a step, beside the layers and what plan.work counts of the ends,
# in starts of an operation: measured on models of two and ten layers of next to nothing, in the mean of their steps.
_MICRO_BATCH_KERNELS, _STEP_KERNELS = 280, 265
PAIRS = ("products", "thin", "attention", "wide_attention", "small", "logits")
"""Rates that are known at several sizes."""
_OF_LATEST = 5  # runs of the same workload: machines change
_SETTLED_STEPS = 16
"""On a CPU the first six to eight take longer, until memory is where it stays, and `train.pace` leaves out three: from
here on the median is none of them."""


@dataclass(frozen=True)
class PastRun:
    """A run of a workload: seconds of its steps and bytes of a rank as they were predicted without earlier runs, and as
    they were. `same` and `like` are digests of all that decides on the time but the length of rows, `tokens`, and of
    their documents, `attended` in the mean of all tokens; and of model and method only. `method`: full, lora or qlora.
    `steps`: how many it took, 0 where that is not known.
    """

    same: str
    like: str
    num_nodes: int
    tokens: float
    attended: float
    predicted: float
    measured: float
    predicted_memory: float
    measured_memory: float
    when: float
    method: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Calibration:
    """Of one device of one host; of a CPU as each of `num_ranks` found it that were measured at a time, with so many
    threads on so many `cores` (0: its part of all).

    `products`: (cube root of rows x columns x depth, operations a second); `thin`: the same by the thinnest of the
    three, where the others are large; `attention`: (tokens of a document, operations a second), and `wide_attention`
    with wider heads, beside `call_seconds` of each call; `small`: (bytes of a tensor, bytes a second that an operation
    on it reads and writes); `logits`: (bytes of a chunk of them, bytes a second in the cross entropy, at 30 for each);
    all with the smallest first. `cold`: bytes a second that come from no cache and go into none. `kernel_seconds`: of
    an operation on nothing. `within`: bytes a second and seconds of latency of an all-reduce between this node's ranks.
    `spread`: by which part of the usual all took longer in the slowest quarter of a minute than in the quickest. Empty
    rates were not measured: only runs are known.
    """

    host: str
    device: str
    on_cpu: bool = True
    num_ranks: int = 1
    num_threads: int = 0
    cores: float = 0.0
    element_bytes: int = 4
    products: Sequence[tuple[float, float]] = ()
    thin: Sequence[tuple[float, float]] = ()
    small: Sequence[tuple[float, float]] = ()
    attention: Sequence[tuple[float, float]] = ()
    wide_attention: Sequence[tuple[float, float]] = ()
    call_seconds: float = 0.0
    logits: Sequence[tuple[float, float]] = ()
    optimizer: float = 0.0
    cold: float = 0.0
    kernel_seconds: float = 0.0
    fresh_seconds: float = 0.0
    spread: float = 0.0
    within: Link | None = None
    runs: Sequence[PastRun] = ()
    when: float = 0.0

    @property
    def is_measured(self) -> bool:
        return bool(self.products and self.small and self.kernel_seconds)

    def rates(self, rates: Rates, *, half: bool, num_ranks: int, num_threads: int = 0) -> Rates:
        """The measured rates in place of the data sheet's, for `num_ranks` on this node at a time; on a CPU in
        proportion to the cores that a rank has. What is started one after the other one core does, however many there
        are.

        On a GPU products were measured for a moment and alone, so the fitted part of them is what training keeps up.
        """
        if not self.is_measured or half is not (self.element_bytes == 2):
            return rates
        share, of_starts = self._shares(num_ranks, num_threads) if self.on_cpu else (1.0, 1.0)
        kept = 1.0 if self.on_cpu else FITTED.matmul
        start = self.kernel_seconds / of_starts
        return replace(
            rates,
            products=[(size, rate * kept * share) for size, rate in self.products],
            thin=[(size, rate * kept * share) for size, rate in self.thin],
            small=[(size, rate * share) for size, rate in self.small],
            attention=[(tokens, rate * kept * share) for tokens, rate in self.attention],
            wide_attention=[(tokens, rate * kept * share) for tokens, rate in self.wide_attention],
            call_seconds=self.call_seconds / of_starts,
            fresh_seconds=self.fresh_seconds / of_starts if self.on_cpu else 0.0,
            logits=[(size, rate * share) for size, rate in self.logits],
            optimizer=self.optimizer * share,
            cold=self.cold * share if self.on_cpu else 0.0,
            bandwidth=max(rate for _, rate in self.small) * share,
            kernel_seconds=start,
            micro_batch_seconds=_MICRO_BATCH_KERNELS * start if self.on_cpu else rates.micro_batch_seconds,
            step_seconds=_STEP_KERNELS * start if self.on_cpu else rates.step_seconds,
            by_volume=True,
            is_serial=self.on_cpu,
        )

    def _shares(self, num_ranks: int, num_threads: int) -> tuple[float, float]:
        """How many times the cores a rank has that it was measured with: all of them, and of one core."""
        found = cores_of_rank(num_ranks, num_threads or usable_cores())
        measured = self.cores or cores_of_rank(self.num_ranks, self.num_threads or usable_cores())
        return found / measured, min(1.0, found) / min(1.0, measured)

    def is_of(self, num_ranks: int, num_threads: int) -> bool:
        """Whether its rates are of so many ranks with so many threads, and in proportion to nothing."""
        return not self.on_cpu or (num_ranks, num_threads) == (self.num_ranks, self.num_threads)

    def corrected(self, predicted: StepTime, workload: Workload) -> StepTime:
        """By what earlier runs took: the same workload's, else what others took against what was predicted of them."""
        factor = self.step_seconds(workload, predicted.total) / predicted.total
        return StepTime(**{name: value * factor for name, value in asdict(predicted).items()})

    def step_seconds(self, workload: Workload, predicted: float) -> float:
        """The latest runs of the same workload say it outright. Of others on one node it is known by how much the
        prediction was wrong: of the same model and method, else of the same method, else of all."""
        _, like = digests(workload)
        if found := [run.measured * workload.tokens / run.tokens for run in self._same(workload)][-_OF_LATEST:]:
            return statistics.median(found)
        # What was predicted before it was measured anew was predicted otherwise.
        alone = [run for run in self.runs if run.num_nodes == 1 and run.when >= self.when]
        of_method = [run for run in alone if run.method == workload.method] or alone
        others = _settled([run for run in alone if run.like == like] or of_method)
        return predicted * (statistics.median(run.measured / run.predicted for run in others) if others else 1.0)

    def corrected_memory(self, predicted: RankMemory, workload: Workload) -> RankMemory:
        """By what ranks of earlier runs held against what was predicted of them: of the same workload, or on a CPU of
        the same method, or of any: what a process holds there beside its tensors, which is in no prediction, is much
        the same in all, and PEFT adds to it."""
        same, every = ([run for run in runs if run.predicted_memory] for runs in (self._same(workload), self.runs))
        of_method = [run for run in every if run.method == workload.method]
        found = same or (of_method or every if workload.on_cpu else [])
        if not found:
            return predicted
        beside = statistics.median(run.measured_memory - run.predicted_memory for run in found)
        if workload.on_cpu and beside >= 0:
            return replace(predicted, reserve=predicted.reserve + beside)
        factor = statistics.median(run.measured_memory / run.predicted_memory for run in same) if same else 1.0
        parts = {name: factor * value for name, value in asdict(predicted).items() if name != "host"}
        return replace(predicted, **parts)

    def num_runs(self, workload: Workload) -> int:
        """Earlier runs of the same workload."""
        return len(self._same(workload))

    def _same(self, workload: Workload) -> Sequence[PastRun]:
        """With rows and documents that are about as long: their time is in proportion, and attention's not quite."""
        same, _ = digests(workload)
        return _settled(
            [
                run
                for run in self.runs
                if run.same == same
                and 0.5 <= run.tokens / workload.tokens <= 2
                and 0.5 <= run.attended / attended(workload) <= 2
            ]
        )

    def without_runs(self) -> Calibration:
        """The measured rates alone."""
        return replace(self, runs=())


def _settled(runs: Sequence[PastRun]) -> Sequence[PastRun]:
    """Those that went on past their slow first steps, where there are some."""
    return [run for run in runs if run.steps >= _SETTLED_STEPS] or runs


_OF_DATA = ("tokens", "labelled", "documents")


def digests(workload: Workload) -> tuple[str, str]:
    """Of all that decides on a workload's time, and of its model and method."""
    shape = workload.shape
    model = [getattr(shape, name) for name in ("num_layers", "hidden", "intermediate", "num_heads", "vocabulary")]
    like = [*model, shape.num_experts, workload.method, workload.element.compute, workload.on_cpu]
    rest = {
        name: value
        for name, value in vars(workload).items()
        if name not in ("name", "shape", "adapted", "is_own", "changes", "layout", "element", *_OF_DATA)
    }
    same = [like, asdict(workload.layout), asdict(workload.element), len(workload.adapted), rest]
    return _digest(same), _digest(like)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
