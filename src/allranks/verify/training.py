"""Whether all ranks train one model on each block once: parameters, data and the loss."""

from __future__ import annotations

import math
from collections import Counter

from allranks.listing import few
from allranks.verify.check import Check, Result
from allranks.verify.record import Proof
from allranks.verify.transports import of_ranks

# Sums of float32 losses in another order; the sums themselves are of one part in a million.
_LOSS_TOLERANCE = 1e-3


def parameters(proof: Proof) -> Check:
    """Whether ranks that hold the same parameters hold equal ones."""
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


def data(proof: Proof) -> Check:
    """Whether each block of the step went to one rank, once, with the content that it has."""
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


def loss(proof: Proof) -> Check:
    """Whether the recorded loss is that of all ranks' target tokens."""
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
