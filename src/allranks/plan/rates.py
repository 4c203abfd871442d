"""At which rate devices really work: one set of constants for all GPUs, or what was measured on one machine."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from allranks.cluster.measure.pieces import HEADS
from allranks.plan.hardware import Device
from allranks.plan.work import Attended, Product, Work


@dataclass(frozen=True)
class Constants:
    """Parts of what a device can do at best, and seconds.

    `matmul`: of the device's own (`Device.matmul`); `attention`: of the same; `memory`: of the memory's bandwidth.
    `half_tokens`: a product with so few tokens reaches half of the rate. `kernel_seconds`: the host starts a kernel in
    this time; `hook_seconds`: what DeepSpeed's ZeRO-3 adds for each module, `gather_seconds`: for each collective that
    it gathers with. `micro_batch_seconds`, `step_seconds`: what is done once for each.
    """

    matmul: float
    attention: float
    memory: float
    half_tokens: float
    kernel_seconds: float
    hook_seconds: float
    gather_seconds: float
    micro_batch_seconds: float
    step_seconds: float


FITTED = Constants(
    matmul=0.868,
    # 165 to 190 TFLOP/s of an A100 forward and 130 to 165 backward, causal, heads of 128, sequences of 2 to 16 thousand
    # (FlashAttention-2, arXiv 2307.08691, figures 5 and 6), against 271 of its best product.
    attention=0.63,
    memory=0.731,
    # Round figures, not fitted: what is left over where everything else is short.
    half_tokens=64,
    micro_batch_seconds=3e-3,
    step_seconds=20e-3,
    kernel_seconds=19.3e-6,
    hook_seconds=552e-6,
    gather_seconds=450e-6,
)
"""By `python -m benchmarks.plan_rows --fit`, on every second row of each table of benchmarks/plan_rows.toml."""


@dataclass(frozen=True)
class Rates:
    """Of one device in one type of numbers, in operations and bytes a second. Pairs have the smallest first, and the
    rate is on a straight line between them.

    `products`: (tokens, or where `by_volume` the cube root of rows x columns x depth, operations a second); `thin`:
    what the thinnest of these three allows, where that is known; `cold`: bytes a second from and to the memory behind
    all caches, which a CPU's core waits for beside the work of its products, 0 where these were measured with it.
    `attention`: (tokens of a document, operations a second), `wide_attention` the same with wider heads
    (`cluster.measure.pieces.HEADS`) where these are known to have another rate, and `call_seconds` of each call beside;
    `small`: (bytes of a tensor, bytes a second). `logits` likewise, `optimizer`: where these are known to have other
    rates than the memory's `bandwidth`. `fresh_seconds`: what a byte costs that comes fresh from the system.
    `is_serial`: a CPU computes while it starts an operation, a GPU beside it.
    """

    products: Sequence[tuple[float, float]]
    attention: Sequence[tuple[float, float]]
    bandwidth: float
    kernel_seconds: float
    hook_seconds: float
    gather_seconds: float
    micro_batch_seconds: float
    step_seconds: float
    wide_attention: Sequence[tuple[float, float]] = ()
    thin: Sequence[tuple[float, float]] = ()
    small: Sequence[tuple[float, float]] = ()
    logits: Sequence[tuple[float, float]] = ()
    optimizer: float = 0.0
    cold: float = 0.0
    call_seconds: float = 0.0
    fresh_seconds: float = 0.0
    by_volume: bool = False
    is_serial: bool = False

    def product_seconds(self, one: Product, element_bytes: float) -> float:
        """Of all its repetitions: limited by the matrix units or by reading and writing; on a CPU that is `cold`, after
        one another."""
        flops = 2.0 * one.tokens * one.rows * one.columns
        size = (flops / 2) ** (1 / 3) if self.by_volume else one.tokens
        moved = element_bytes * (one.tokens * (one.rows + one.columns) + one.rows * one.columns)
        rate = _between(self.products, size)
        thinnest = min(one.tokens, one.rows, one.columns)
        if self.thin and thinnest <= self.thin[-1][0]:
            rate = min(rate, _between(self.thin, thinnest))
        if self.cold:
            return one.count * (flops / rate + _far(one) * element_bytes / self.cold)
        return one.count * max(flops / rate, moved / self.bandwidth)

    def attention_seconds(self, work: Work) -> float:
        return sum(one.flops / self._attention_rate(one) + one.calls * self.call_seconds for one in work.attended)

    def _attention_rate(self, one: Attended) -> float:
        """Of a pair of tokens the softmax takes as long in every head, and products as their numbers are many."""
        rate = _between(self.attention, one.tokens)
        if not self.wide_attention:
            return rate
        narrow, wide = HEADS["attention"], HEADS["wide_attention"]
        of_narrow, of_wide = narrow / rate, wide / _between(self.wide_attention, one.tokens)
        of_number = max(of_wide - of_narrow, 0.0) / (wide - narrow)
        return one.numbers / max(of_narrow + (one.numbers - narrow) * of_number, of_number * one.numbers)

    def moved_seconds(self, work: Work) -> float:
        of_logits = _between(self.logits, work.logits.tensor_bytes) if self.logits else self.bandwidth
        return work.logits.num_bytes / of_logits + sum(
            one.num_bytes / (_between(self.small, one.tensor_bytes) if self.small else self.bandwidth)
            for one in work.moved
        )


def _far(one: Product) -> float:
    """Numbers that come from far or go there. Of the three products of a matrix each reads or writes the matrix, the
    first writes what is kept until backward, the third reads what was kept; the others are between two operations."""
    return one.rows * one.columns + one.tokens * (one.rows + one.columns) / 3


def _between(points: Sequence[tuple[float, float]], size: float) -> float:
    at = bisect.bisect_left(points, (size, 0.0))
    if at == 0:
        return points[0][1]
    if at == len(points):
        return points[-1][1]
    (low, slow), (high, fast) = points[at - 1], points[at]
    return slow + (fast - slow) * (size - low) / (high - low)


_TOKENS = [2**power for power in range(4, 18)]


_BLOCK = 128
"""Queries and keys that FlashAttention-2 takes together (arXiv 2307.08691, section 3.3): what a block holds of later
positions is computed in vain, so n (n + 128) / 2 pairs are where n n / 2 are counted."""
_LONG = 4096
"""Tokens of the sequences that `Constants.attention` is known of."""


def _kept(tokens: float) -> float:
    return tokens / (tokens + _BLOCK) * (1 + _BLOCK / _LONG)


@lru_cache(maxsize=64)
def rates_of(device: Device, *, half: bool, constants: Constants = FITTED) -> Rates:
    """From the device's data sheet, by the constants."""
    best = device.peak(half=half) * device.matmul
    return Rates(
        [(tokens, best * constants.matmul * tokens / (tokens + constants.half_tokens)) for tokens in _TOKENS],
        attention=[(tokens, best * constants.attention * _kept(tokens)) for tokens in _TOKENS],
        bandwidth=device.bandwidth * constants.memory,
        kernel_seconds=constants.kernel_seconds,
        hook_seconds=constants.hook_seconds,
        gather_seconds=constants.gather_seconds,
        micro_batch_seconds=constants.micro_batch_seconds,
        step_seconds=constants.step_seconds,
    )
