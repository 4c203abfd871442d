"""The same run on fewer and on more nodes: what is gained, and where it no longer fits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from allranks.plan.batch import Batch, batch
from allranks.plan.lengths import Lengths
from allranks.plan.table import Machines, Row, row
from allranks.plan.workload import Workload


@dataclass(frozen=True)
class OnNodes:
    """`same`: with the batch that is wanted; `grown`: with one that grows with the nodes, as much for each rank as on
    all. Efficiency is against as many times the first of the rows in which it fits."""

    num_nodes: int
    same: Row
    grown: Row
    speedup: float | None = None
    efficiency: float | None = None
    grown_efficiency: float | None = None


def over_nodes(one: Row, machines: Machines, lengths: Lengths) -> list[OnNodes]:
    """On 1, 2, 4 … nodes up to those there are."""
    found = [_on(number, one, machines, lengths) for number in _numbers(machines.num_nodes)]
    first = next((each for each in found if each.same.fits), None)
    return [each if first is None or not each.same.fits else _against(first, each) for each in found]


def on_nodes(workload: Workload, num_nodes: int) -> Workload:
    """The same strategy over another number of nodes: what is sharded over all ranks stays so."""
    layout, ranks = workload.layout, num_nodes * workload.ranks_per_node
    if layout.kind == "fsdp" and layout.num_shards == workload.num_ranks:
        layout = replace(layout, num_shards=ranks)
    elif layout.kind == "fsdp":
        layout = replace(layout, num_shards=min(layout.num_shards, ranks))
    return replace(workload, layout=layout, num_ranks=ranks)


def _on(num_nodes: int, one: Row, machines: Machines, lengths: Lengths) -> OnNodes:
    there = replace(machines, num_nodes=num_nodes)
    size, wanted = one.batch.micro_batch_size, one.batch.effective
    grown = max(1, round(wanted * num_nodes / machines.num_nodes))

    def of(wanted: int) -> Row:
        spread = batch(wanted, size, num_nodes, machines.ranks_per_node)
        changes = {**one.workload.changes, **_batch_changes(one.batch, spread)}
        there_too = on_nodes(one.workload, num_nodes)
        changed = replace(there_too, num_micro_batches=spread.accumulation, changes=changes)
        return row(changed, there, spread, lengths)

    return OnNodes(num_nodes, of(wanted), of(grown))


def _batch_changes(before: Batch, spread: Batch) -> Mapping[str, int | None]:
    """The config's keys of the batch, of which only one may be there, where they say another than on all nodes."""
    if (spread.accumulation, spread.effective) == (before.accumulation, before.effective):
        return {}
    keys = ("gradient_accumulation_steps", "batch_size")
    return {key: spread.keys.get(key) for key in keys}


def _against(first: OnNodes, one: OnNodes) -> OnNodes:
    times = one.num_nodes / first.num_nodes
    speedup = one.same.tokens_per_second / first.same.tokens_per_second
    grown = one.grown.tokens_per_second / first.grown.tokens_per_second
    return replace(one, speedup=speedup, efficiency=speedup / times, grown_efficiency=grown / times)


def _numbers(most: int) -> Iterator[int]:
    number = 1
    while number < most:
        yield number
        number *= 2
    yield most
