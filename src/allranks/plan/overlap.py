"""How long a step's collectives take, and how much of that computing does not hide."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from allranks.plan.communication import Collective, sent_to_other_nodes
from allranks.plan.config_workload import step_sizes
from allranks.plan.hardware import Link
from allranks.plan.step_traffic import StepSizes, collectives_of_step
from allranks.plan.workload import Workload

_SLOWED = 0.189
"""Part by which computing takes longer while GPUs of a node send to each other beside it, since collectives take
processors and memory from it: the mean of what was measured on A100, H100 and MI250 (Lee et al. 2025, arXiv
2507.03114). Slower links between nodes keep a GPU less busy: of these only the time counts that its own links take."""


@dataclass(frozen=True)
class Exchange:
    """Seconds of a step. `exposed`: in which nothing is computed, and by which computing takes longer for it."""

    seconds: float
    exposed: float


@dataclass(frozen=True)
class _Kind:
    """A collective of a step: seconds of one call over the whole model, sent in `pieces`; `within` of these the links
    of a node's devices work."""

    op: str
    seconds: float
    within: float
    pieces: int
    calls: int
    num_ranks: int


def exchange(
    workload: Workload,
    within: Link,
    between: Link | None,
    *,
    forward: float,
    backward: float,
    idle: tuple[float, float] = (0.0, 0.0),
) -> Exchange:
    """`forward` and `backward`: seconds in which one micro-batch is computed, and `idle` those of either in which the
    device waits for the host; `within` joins a node's devices, `between` the nodes.

    FSDP2 and ZeRO-3 gather a layer while the one before is computed and reduce while the next is; DDP reduces buckets
    in the last backward pass; ZeRO-1 and 2 wait for theirs (DeepSpeed's `overlap_comm` is off there). The first and
    last piece of each pass find nothing to hide behind. What ZeRO-3 gathers a third time it asks for when it needs it,
    and waits, unless the device would wait anyway. Between ranks of one node that compute on CPUs, their own
    cores carry what is sent, and are taken from computing.
    """
    if workload.num_ranks == 1:
        return Exchange(0.0, 0.0)
    sizes = step_sizes(workload)
    kinds = list(_kinds(workload, within, between, replace(sizes, num_again=0)))
    third = replace(sizes, num_parameters=0, num_trained=0, num_persistent=0)
    thirds = list(_kinds(workload, within, between, third)) if sizes.num_again else []
    again = sum(kind.seconds for kind in thirds)
    total = sum(kind.seconds * kind.calls for kind in (*kinds, *thirds))
    near = 0.0 if workload.on_cpu else sum(kind.within * kind.calls for kind in (*kinds, *thirds))
    kind, stage = workload.layout.kind, workload.layout.stage
    takes_cores = workload.on_cpu and workload.num_ranks == workload.ranks_per_node
    if takes_cores or (kind == "zero" and stage < 3):
        return Exchange(total, total)
    if kind == "ddp":
        exposed = sum(_behind(one.seconds, one.pieces, backward) for one in kinds)
        return Exchange(total, exposed + _slowed(min(near, total - exposed), idle[1]))
    exposed = _sharded(workload, kinds, forward, backward)
    exposed += max(0.0, again - idle[1]) * workload.num_micro_batches
    return Exchange(total, exposed + _slowed(min(near, total - exposed), sum(idle) * workload.num_micro_batches))


def _slowed(beside: float, idle: float) -> float:
    """What computing takes longer for `beside` seconds of sending, but for those in which the device is idle."""
    return _SLOWED * max(0.0, beside - idle)


def _sharded(workload: Workload, kinds: Sequence[_Kind], forward: float, backward: float) -> float:
    micro_batches = workload.num_micro_batches
    gathers = [one for one in kinds if one.op == "all_gather" and one.calls >= micro_batches]
    once = [one for one in kinds if one.calls < micro_batches or (one.op == "all_reduce" and one.calls == 1)]
    reduces = [one for one in kinds if one not in gathers]
    gather = sum(one.seconds for one in gathers)
    twice = any(one.calls >= 2 * micro_batches for one in gathers)
    pieces = max((one.pieces for one in kinds), default=1)
    of_all = sum(one.seconds for one in reduces)
    always = sum(one.seconds for one in reduces if one not in once)
    exposed = micro_batches * _behind(gather, pieces, forward)
    usual = (gather if twice else 0.0) + always
    exposed += (micro_batches - 1) * _behind(usual, pieces, backward)
    return exposed + _behind((gather if twice else 0.0) + of_all, pieces, backward)


def _behind(seconds: float, pieces: int, computing: float) -> float:
    """What is left of it when all but one piece go on beside computing."""
    first = seconds / pieces
    return first + max(0.0, seconds - first - computing)


def _kinds(workload: Workload, within: Link, between: Link | None, sizes: StepSizes) -> Iterator[_Kind]:
    backend = "gloo" if workload.on_cpu else "nccl"
    per_node = min(workload.ranks_per_node, workload.num_ranks)
    of_ranks = [
        collectives_of_step(workload.layout, sizes, rank, workload.num_ranks, backend) for rank in range(per_node)
    ]
    for same in zip(*of_ranks, strict=True):
        one, calls = same[0]
        if len(one.ranks) < 2 or not one.num_bytes or not calls:
            continue
        groups = {each.ranks for each, _ in same}
        sent = one.num_bytes * sum(_sent_of_each_byte(one.op, backend, ranks, per_node) for ranks in groups)
        num_nodes, pieces = _num_nodes(one.ranks, per_node), _pieces(workload, one)
        near = _within_nodes(one, num_nodes, within)
        seconds = near
        if sent and between is not None:  # the slower of the links that a ring goes over, which work side by side
            seconds = max(seconds, sent / (between.bytes_per_second * between.achieved))
        seconds += pieces * _latency(one, num_nodes, within, between)
        yield _Kind(one.op, seconds, near, pieces, calls, len(one.ranks))


@lru_cache(maxsize=1024)
def _num_nodes(ranks: Sequence[int], per_node: int) -> int:
    """Of so many ranks each, that a group is on."""
    return len({rank // per_node for rank in ranks})


@lru_cache(maxsize=1024)
def _sent_of_each_byte(op: str, backend: str, ranks: range, per_node: int) -> float:
    """What the members of a group that are on node 0 send to other nodes of a message of one byte."""
    nodes = [rank // per_node for rank in range(ranks[-1] + 1)]
    one = Collective(op, backend, "", ranks, "", 1)
    here = [rank for rank in ranks[:per_node] if rank < per_node]
    if backend == "nccl":  # its rings make no difference between them
        return len(here) * sent_to_other_nodes(one, here[0], nodes)
    return sum(sent_to_other_nodes(one, rank, nodes) for rank in here)


def _within_nodes(one: Collective, num_nodes: int, within: Link) -> float:
    """Seconds of the bytes alone, over the links within a node that a ring goes over."""
    number = len(one.ranks)
    ring = (number - 1) / number * one.num_bytes * (2 if one.op == "all_reduce" else 1)
    return ring / (within.bytes_per_second * within.achieved) if num_nodes < number else 0.0


def _latency(one: Collective, num_nodes: int, within: Link, between: Link | None) -> float:
    """Of one call: a hop for each step of the ring, or of the tree where that is shorter (NCCL, graph/tuning.cc)."""
    number = len(one.ranks)
    per_node = number / num_nodes
    far = between.latency_seconds if between is not None and num_nodes > 1 else 0.0
    near = within.latency_seconds if per_node > 1 else 0.0
    steps = 2 if one.op == "all_reduce" else 1
    crossing = num_nodes if num_nodes > 1 else 0
    ring = steps * ((number - 1 - max(0, crossing - 1)) * near + max(0, crossing - 1) * far)
    if one.op != "all_reduce" or one.backend == "gloo":
        return ring
    tree = 2 * ((per_node - 1) * near + math.log2(num_nodes) * far)
    return min(ring, tree)


def _pieces(workload: Workload, one: Collective) -> int:
    """FSDP2 and ZeRO-3 take a layer at a time, and the ends; the others buckets."""
    kind, stage = workload.layout.kind, workload.layout.stage
    if kind == "ddp":
        rest = max(0.0, one.num_bytes - workload.first_bucket_bytes)
        return 1 + math.ceil(rest / workload.bucket_bytes)
    if kind == "zero" and stage < 3:
        return max(1, math.ceil(one.num_bytes / (workload.bucket_elements * workload.element.gradient)))
    return workload.shape.num_layers + 1
