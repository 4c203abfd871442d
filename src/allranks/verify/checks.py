"""Proof -> what holds, what does not, and what cannot be told; each with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from allranks.findings import Finding, Who
from allranks.listing import few
from allranks.verify import network, training
from allranks.verify.check import ALONE, Check
from allranks.verify.record import Proof, RankProof
from allranks.verify.transports import of_ranks


def judge(proof: Proof) -> list[Check]:
    """All checks, in an order to be read in. Pure: the same proof has the same verdict anywhere."""
    if missing := _missing(proof):
        return [missing]
    return [
        _world(proof),
        *_nodes(proof),
        _gpus(proof),
        network.communicator(proof),
        _stepped(proof),
        training.parameters(proof),
        training.data(proof),
        training.loss(proof),
        network.transports(proof),
        *network.require(proof),
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
        return Check("world size", "wrong", f"{len(proof.ranks)} processes, and several are rank {few(twice)}", ALONE)
    if lacking := sorted(expected - set(numbers)):
        return Check("world size", "wrong", f"rank {few(lacking)} of {proof.world_size} told nothing", ALONE)
    if wrong := [rank for rank in proof.ranks if rank.world_size != proof.world_size]:
        said = f"rank {wrong[0].rank} is one of {wrong[0].world_size} ranks, and rank 0 one of {proof.world_size}"
        return Check("world size", "wrong", said, ALONE)
    return None


def _world(proof: Proof) -> Check:
    num_nodes = len({rank.node for rank in proof.ranks})
    planned = sum(proof.nodes.values())
    ranks = f"{proof.world_size} rank{'s' * (proof.world_size > 1)} on {num_nodes} node{'s' * (num_nodes > 1)}"
    if proof.nodes and planned != proof.world_size:
        return Check("world size", "wrong", f"{ranks}, and the nodes were to start {planned}", ALONE)
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


def _stepped(proof: Proof) -> Check:
    behind = [rank.rank for rank in proof.ranks if rank.step != proof.step]
    if behind:
        return Check("steps", "wrong", f"{of_ranks(behind, proof)} did not do step {proof.step}", ranks=tuple(behind))
    return Check("steps", "ok", f"every rank did step {proof.step}")
