"""Proof -> what holds, what does not, and what cannot be told; each with what to do."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from allranks.cluster.network import REQUIRED_KINDS
from allranks.findings import Finding, Who
from allranks.listing import few
from allranks.verify.record import Proof, RankProof
from allranks.verify.transports import (
    fails,
    in_groups,
    of_ranks,
    pairs,
    ways_of_ranks,
    why_no_gdr,
    why_sockets,
)

Result = Literal["ok", "wrong", "warning", "unknown"]
# Sums of float32 losses in another order; the sums themselves are of one part in a million.
_LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `said` in a sentence; for what is wrong `remedy` is the next action."""

    name: str
    result: Result
    said: str
    remedy: str = ""
    ranks: tuple[int, ...] = ()


def judge(proof: Proof) -> list[Check]:
    """All checks, in an order to be read in. Pure: the same proof has the same verdict anywhere."""
    if missing := _missing(proof):
        return [missing]
    return [
        _world(proof),
        *_nodes(proof),
        _gpus(proof),
        _communicator(proof),
        _stepped(proof),
        _parameters(proof),
        _data(proof),
        _loss(proof),
        _transports(proof),
        *_require(proof),
    ]


def findings(checks: Sequence[Check], proof: Proof) -> list[Finding]:
    """What is wrong, as findings."""
    hosts = {rank.rank: rank for rank in proof.ranks}
    found = []
    for check in checks:
        if check.result != "wrong":
            continue
        first = hosts.get(check.ranks[0]) if len(check.ranks) == 1 else None
        who = Who(first.node, first.rank, first.host) if first else Who()
        found.append(
            Finding(code=f"verify-{check.name.replace(' ', '-')}", what=check.said, who=who, remedy=check.remedy)
        )
    return found


def sentence(proof: Proof, checks: Sequence[Check]) -> str:
    """One line for the terminal of a run that is right."""
    said = {check.name: check for check in checks}
    parts = [said["world size"].said]
    parts += [check.said for name in ("transports",) if (check := said.get(name)) and check.result == "ok"]
    if (check := said.get("parameters")) and check.result == "ok":
        parts.append("equal parameters" if proof.world_size > 1 else "")
    if (check := said.get("data")) and check.result == "ok":
        parts.append("every block of the step once")
    return "; ".join(part for part in parts if part)


def _missing(proof: Proof) -> Check | None:
    """What is told of too few ranks, or of one twice, can be judged no further."""
    numbers = Counter(rank.rank for rank in proof.ranks)
    expected = set(range(proof.world_size))
    if twice := sorted(rank for rank, times in numbers.items() if times > 1):
        return Check("world size", "wrong", f"{len(proof.ranks)} processes, and several are rank {few(twice)}", _ALONE)
    if lacking := sorted(expected - set(numbers)):
        return Check("world size", "wrong", f"rank {few(lacking)} of {proof.world_size} told nothing", _ALONE)
    if wrong := [rank for rank in proof.ranks if rank.world_size != proof.world_size]:
        said = f"rank {wrong[0].rank} is one of {wrong[0].world_size} ranks, and rank 0 one of {proof.world_size}"
        return Check("world size", "wrong", said, _ALONE)
    return None


_ALONE = "Start all nodes with the same --nnodes, --nproc-per-node and --master-addr; `allranks check` compares them"


def _world(proof: Proof) -> Check:
    num_nodes = len({rank.node for rank in proof.ranks})
    planned = sum(proof.nodes.values())
    ranks = f"{proof.world_size} rank{'s' * (proof.world_size > 1)} on {num_nodes} node{'s' * (num_nodes > 1)}"
    if proof.nodes and planned != proof.world_size:
        return Check("world size", "wrong", f"{ranks}, and the nodes were to start {planned}", _ALONE)
    return Check("world size", "ok", ranks)


def _nodes(proof: Proof) -> list[Check]:
    of_node: dict[int, list[RankProof]] = {}
    for rank in proof.ranks:
        of_node.setdefault(rank.node, []).append(rank)
    counts = {len(ranks) for ranks in of_node.values()}
    said = few(
        [f"{ranks[0].host} has {_span([rank.rank for rank in ranks])}" for _, ranks in sorted(of_node.items())],
        4,
        rest=" and {:,} more nodes",
    )
    # It may be meant so, and what was asked is compared above; it is only said.
    unequal = "unequal numbers of ranks: " if len(counts) > 1 else ""
    return [Check("nodes", "ok", unequal + said)]


def _span(ranks: list[int]) -> str:
    if len(ranks) > 2 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"ranks {ranks[0]}-{ranks[-1]}"
    return f"rank{'s' * (len(ranks) > 1)} {few(ranks)}"


def _gpus(proof: Proof) -> Check:
    holders: dict[str, list[int]] = {}
    for rank in proof.ranks:
        if rank.gpu is not None:
            holders.setdefault(rank.gpu, []).append(rank.rank)
    without = [rank.rank for rank in proof.ranks if rank.gpu is None]
    if without and holders:
        said = f"{of_ranks(without, proof)} trained on the CPU, and the others on GPUs"
        return Check("GPUs", "wrong", said, "Look at nvidia-smi and CUDA_VISIBLE_DEVICES there", tuple(without))
    shared = {gpu: ranks for gpu, ranks in holders.items() if len(ranks) > 1}
    if shared:
        gpu, ranks = next(iter(shared.items()))
        remedy = "Show each process a GPU of its own, or all of a node's GPUs to all of its ranks"
        return Check("GPUs", "wrong", f"{of_ranks(ranks, proof)} share {gpu}", remedy, tuple(ranks))
    if not holders:
        return Check("GPUs", "ok", "no rank uses a GPU")
    kinds = sorted({rank.device for rank in proof.ranks})
    return Check("GPUs", "ok", f"{len(holders)} different GPUs, by UUID ({few(kinds, 3)})")


def _communicator(proof: Proof) -> Check:
    name = "communicator"
    if proof.world_size == 1:
        return Check(name, "ok", "one rank needs none")
    if proof.backend != "nccl":
        return _gloo_communicator(proof)
    silent = [rank.rank for rank in proof.ranks if rank.nccl is None or not rank.nccl.communicators]
    if silent:
        why = "set network.debug: INFO, or leave it out" if len(silent) == proof.world_size else "look at its log"
        return Check(name, "unknown", f"NCCL logged nothing on {of_ranks(silent, proof)}", why, tuple(silent))
    of_rank = {
        rank.rank: {
            comm.key
            for comm in (rank.nccl.communicators if rank.nccl else ())
            if comm.num_ranks == proof.world_size and comm.rank == rank.rank and not comm.is_split
        }
        for rank in proof.ranks
    }
    if common := set.intersection(*of_rank.values()):
        return Check(name, "ok", f"one of {proof.world_size} ranks ({sorted(common)[0]}, by NCCL's log)")
    if outside := [rank for rank, keys in of_rank.items() if not keys]:
        log = next(rank.nccl for rank in proof.ranks if rank.rank == outside[0])
        sizes = few(sorted({f"{comm.num_ranks} ranks" for comm in (log.communicators if log else ())}))
        said = f"{of_ranks(outside, proof)} was in no communicator of all {proof.world_size} ranks, but of {sizes}"
        return Check(name, "wrong", said, _ALONE, tuple(outside))
    groups: dict[str, list[int]] = {}
    for rank, keys in of_rank.items():
        groups.setdefault(sorted(keys)[-1], []).append(rank)
    listed = few([f"{of_ranks(ranks, proof)} in {key}" for key, ranks in groups.items()], 4, between="; ")
    return Check(name, "wrong", f"the ranks are in different communicators: {listed}", _ALONE)


def _gloo_communicator(proof: Proof) -> Check:
    """On gloo every rank holds connections to all others."""
    name = "communicator"
    if any(rank.connections is None for rank in proof.ranks):
        return Check(name, "unknown", "gloo; this system does not tell which connections a process has")
    ways, num_nodes = ways_of_ranks(proof), len({rank.node for rank in proof.ranks})
    alone = [rank.rank for rank in proof.ranks if num_nodes > 1 and rank.rank not in ways]
    if alone:
        said = f"{of_ranks(alone, proof)} has no connection to an address of another node"
        # Behind a translation of addresses the ends have others than the nodes know.
        return Check(name, "unknown", said, ranks=tuple(alone))
    return Check(name, "ok", f"gloo, {proof.world_size} ranks that are connected with each other")


def _stepped(proof: Proof) -> Check:
    behind = [rank.rank for rank in proof.ranks if rank.step != proof.step]
    if behind:
        return Check("steps", "wrong", f"{of_ranks(behind, proof)} did not do step {proof.step}", ranks=tuple(behind))
    return Check("steps", "ok", f"every rank did step {proof.step}")


def _parameters(proof: Proof) -> Check:
    name = "parameters"
    remedy = "The replicas train different models: resume from a checkpoint before this, and compare the nodes' files"
    # Processors of different kinds round the clipping of gradients differently, and that drifts apart.
    kind: Result = "warning" if len({rank.device for rank in proof.ranks}) > 1 else "wrong"
    if proof.different:
        return Check(name, kind, f"replicas differ: {few(proof.different, 4, between='; ')}", remedy)
    wholes: dict[str, list[int]] = {}
    parts: dict[str, dict[str, list[int]]] = {}
    for rank in proof.ranks:
        wholes.setdefault(rank.whole, []).append(rank.rank)
        parts.setdefault(rank.parts, {}).setdefault(rank.sums, []).append(rank.rank)
    groups = [list(wholes.values()), *(list(sums.values()) for sums in parts.values())]
    if wrong := next((group for group in groups if len(group) > 1), None):
        usual = max(wrong, key=len)
        odd = sorted(rank for ranks in wrong if ranks is not usual for rank in ranks)
        said = f"the parameters of {of_ranks(odd, proof)} are not those of {of_ranks(sorted(usual), proof)}"
        return Check(name, kind, said, remedy, tuple(odd))
    if proof.world_size == 1:
        return Check(name, "ok", "one rank, nothing to compare")
    if all(len(ranks) == 1 for sums in parts.values() for ranks in sums.values()):
        return Check(name, "ok", "each rank holds a part of its own, and what all hold is equal")
    return Check(name, "ok", "equal on all ranks that hold the same, by checksum")


def _data(proof: Proof) -> Check:
    name = "data"
    silent = [rank.rank for rank in proof.ranks if rank.blocks is None]
    if silent:
        return Check(name, "unknown", f"{of_ranks(silent, proof)} did not say what it trained on", ranks=tuple(silent))
    taken = {rank.rank: rank.blocks for rank in proof.ranks if rank.blocks is not None}
    remedy = "This is a fault of the data's way to the ranks: please report it, with the run's proof.json"
    if proof.ids is not None and all(blocks.ids is not None for blocks in taken.values()):
        expected = Counter(proof.ids)
        holders: dict[int, list[int]] = {}
        for rank, blocks in taken.items():
            for block in blocks.ids or ():
                holders.setdefault(block, []).append(rank)
        for block, ranks in sorted(holders.items()):
            if len(ranks) > max(expected[block], 1):
                said = f"block {block} went to {of_ranks(sorted(set(ranks)), proof)}, {len(ranks)} times in one step"
                return Check(name, "wrong", said, remedy, tuple(sorted(set(ranks))))
        if strange := sorted(set(holders) - set(expected)):
            ranks = sorted({rank for block in strange for rank in holders[block]})
            said = f"{of_ranks(ranks, proof)} took blocks that are not of step {proof.step}: {few(strange)}"
            return Check(name, "wrong", said, remedy, tuple(ranks))
        lacking = sorted(block for block, times in expected.items() if len(holders.get(block, ())) < times)
        if lacking:
            said = (
                f"{len(lacking)} of the {proof.num_blocks} blocks of step {proof.step} went to no rank: {few(lacking)}"
            )
            return Check(name, "wrong", said, remedy)
    total = sum(blocks.number for blocks in taken.values())
    if total != proof.num_blocks:
        said = f"the ranks took {total} blocks in step {proof.step}, which has {proof.num_blocks}"
        return Check(name, "wrong", said, remedy)
    for rank, blocks in taken.items():
        following = (rank + 1) % proof.world_size
        theirs = taken[following]
        if blocks.content_of_next and theirs.content and blocks.content_of_next != theirs.content:
            said = (
                f"{of_ranks([following], proof)} did not train on the data that is its own in step {proof.step}, as "
                f"rank {rank} has it"
            )
            return Check(name, "wrong", said, remedy, (following,))
    share = f"{total} blocks of step {proof.step}, each on one rank"
    return Check(name, "ok", share if proof.world_size > 1 else f"{total} blocks of step {proof.step}")


def _loss(proof: Proof) -> Check:
    name = "loss"
    taken = [rank.blocks for rank in proof.ranks if rank.blocks is not None]
    targets = sum(blocks.target_tokens for blocks in taken)
    if len(taken) == len(proof.ranks) and targets != proof.num_target_tokens:
        said = f"the ranks trained on {targets} target tokens in step {proof.step}, which has {proof.num_target_tokens}"
        return Check(name, "wrong", said, "The loss is not that of the global batch: please report it")
    sums = [blocks.loss_sum for blocks in taken if blocks.loss_sum is not None]
    if len(sums) < len(proof.ranks) or proof.loss is None or not math.isfinite(proof.loss) or not targets:
        return Check(name, "unknown", "the loss of the step was not recorded")
    mean = math.fsum(sums) / targets
    if not math.isclose(mean, proof.loss, rel_tol=_LOSS_TOLERANCE, abs_tol=1e-6):
        said = (
            f"the recorded loss {proof.loss:.5f} is not the mean {mean:.5f} over the ranks' {targets:,} target tokens"
        )
        return Check(name, "wrong", said, "Some ranks did not take part in the loss: please report it")
    return Check(name, "ok", f"{proof.loss:.4f} is the mean over the {targets:,} target tokens of all ranks")


def _transports(proof: Proof) -> Check:
    name = "transports"
    num_nodes = len({rank.node for rank in proof.ranks})
    ways = ways_of_ranks(proof)
    if not ways:
        if num_nodes == 1:
            inside = sorted({how.partition(" ")[0] for found in pairs(proof).values() for how in found})
            return Check(name, "ok", "within one node" + (f", by {few(inside)}" if inside else ""))
        return Check(name, "unknown", "how the nodes talk is not known: no rank's log or connections tell")
    groups = in_groups(ways)
    total = len(ways)
    logs = {rank.rank: rank.nccl for rank in proof.ranks}
    usual, members = groups[0]
    others = [(way, ranks) for way, ranks in groups if way is not usual]
    # Rank by rank the fastest is what the others should have too.
    best = max(groups, key=lambda group: (group[0].is_fast, group[0].gdr, len(group[1])))[0]
    if not others:
        why = why_no_gdr(logs[members[0]]) if usual.is_fast and not usual.gdr else ""
        why = why or (why_sockets(logs[members[0]]) if not usual.is_fast else "")
        silent = proof.world_size - total
        more = f"; of {silent} ranks it is not known" if silent and num_nodes > 1 else ""
        everyone = f"all {total} ranks talk" if total > 1 else "1 rank talks"
        return Check(name, "ok", f"{everyone} over {usual}" + (f" ({why})" if why else "") + more)
    told = f"{len(dict(groups)[best])} of {total} ranks talk over {best}"
    slower = [(way, ranks) for way, ranks in groups if way is not best]
    fallen = []
    for way, ranks in slower:
        verb = "fell back to" if best.is_fast and not way.is_fast else "talk over" if len(ranks) > 1 else "talks over"
        reason = why_sockets(logs[ranks[0]]) if not way.is_fast else why_no_gdr(logs[ranks[0]])
        fallen.append(f"{of_ranks(ranks, proof)} {verb} {way}" + (f", because {reason}" if reason else ""))
    lost = sorted(rank for way, ranks in slower if not way.is_fast for rank in ranks)
    result: Result = "wrong" if best.is_fast and lost else "warning"
    remedy = "Look at `ibstat` and NCCL_IB_HCA there; `allranks check` compares the nodes" if result == "wrong" else ""
    return Check(name, result, f"{told}; {'; '.join(fallen)}", remedy, tuple(lost))


def _require(proof: Proof) -> list[Check]:
    if proof.require is None:
        return []
    name, ways = "network.require", ways_of_ranks(proof)
    if len({rank.node for rank in proof.ranks}) == 1:
        return [Check(name, "ok", f"{proof.require}: there is one node only, and no network to require")]
    silent = [rank.rank for rank in proof.ranks if rank.rank not in ways]
    wrong = {rank: way for rank, found in ways.items() if (way := fails(proof.require, found)) is not None}
    if wrong:
        way = next(iter(wrong.values()))
        ranks = [rank for rank, found in wrong.items() if found == way]
        log = next(rank.nccl for rank in proof.ranks if rank.rank == ranks[0])
        why = why_sockets(log) if not way.is_fast else why_no_gdr(log) if proof.require.lower() == "gdr" else ""
        if proof.backend != "nccl" and proof.require.lower() in REQUIRED_KINDS:
            why = "without GPUs ranks talk by gloo, which knows only sockets"
        said = f"{proof.require} is required, and {of_ranks(ranks, proof)} talk{'s' * (len(ranks) == 1)} over {way}"
        card = f" ({way.card})" if way.is_fast and way.card else ""
        remedy = "Mend the network there, or take network.require out of the config"
        return [Check(name, "wrong", said + card + (f", because {why}" if why else ""), remedy, tuple(ranks))]
    # Whoever has no link to another node needs none, where NCCL has told of the others.
    if not ways or (silent and proof.backend != "nccl"):
        said = f"{proof.require} is required, and how {of_ranks(silent, proof)} talks is not known"
        return [
            Check(name, "wrong", said, "Leave network.debug out, or set it to INFO: NCCL's log tells", tuple(silent))
        ]
    return [Check(name, "ok", f"{proof.require}, on every rank")]
